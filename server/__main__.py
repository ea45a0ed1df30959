"""Entry point of `embedding-server` and `python -m server`: hears signals before the long imports."""

from server.program.standard_streams import open_standard_streams, whole_output
from server.program.termination import ending_at_once, raise_when_terminated


def main() -> None:
    """Run the command; see `cli.main`."""
    open_standard_streams()
    raise_when_terminated()
    with ending_at_once():
        from server.commands import cli
    with whole_output():
        cli.main()


if __name__ == "__main__":
    main()
