"""The ONNX graphs that a publisher made, by their names in a folder.

Pure functions of files; any thread may call.
"""

from __future__ import annotations

import glob
from pathlib import Path

from server.catalog.names import stays_below
from server.errors import ImportRefused

USUAL_GRAPH = "onnx/model.onnx"


def find_graphs(path: Path, transformer: str, wished: str | None) -> tuple[str, ...]:
    """The graph that is wished for, else the usual one, else all that there are; from the folder.

    Args:
        transformer: the transformer's folder below `path`, which may hold them as well.

    Raises:
        ImportRefused: the one that is wished for is not there.
    """
    places = dict.fromkeys(
        Path(place, below).as_posix() for below in ("onnx", "") for place in (transformer, "")
    )
    there = [
        Path(place, file.name).as_posix()
        for place in places
        for file in sorted((path / place).glob("*.onnx"))
        if file.is_file()
    ]
    if wished is not None:
        return (_wished_graph(path, wished, there),)
    usual = [
        name for name in there if name in (Path(transformer, USUAL_GRAPH).as_posix(), USUAL_GRAPH)
    ]
    return tuple(usual[:1] or there)


def choose_graph(path: Path, graphs: tuple[str, ...]) -> str:
    """The one of `find_graphs`.

    Raises:
        ImportRefused: there is none, or it is not clear which is meant.
    """
    if len(graphs) > 1:
        raise ImportRefused(
            f"{path}: several ONNX graphs, and none is {USUAL_GRAPH}: {', '.join(graphs)}; "
            "--onnx FILE says which"
        )
    if not graphs:
        raise ImportRefused(f"{path}: has no ONNX graph")
    return graphs[0]


def files_of_graph(path: Path, graph: str) -> tuple[str, ...]:
    """The names of a graph's files in its own folder: itself and what is too large for it."""
    file = path / graph
    beside = file.parent.glob(f"{glob.escape(file.name)}[_.]data*")
    return (file.name, *sorted(one.name for one in beside))


def _wished_graph(path: Path, wished: str, there: list[str]) -> str:
    name = Path(wished).as_posix()
    if not stays_below(name) or not name.endswith(".onnx"):
        raise ImportRefused(f"--onnx: {wished} must be an .onnx file, named from {path}")
    if not (path / name).is_file():
        others = f"; there are {', '.join(there)}" if there else ""
        raise ImportRefused(f"--onnx: {path / name}: No such file{others}")
    return name
