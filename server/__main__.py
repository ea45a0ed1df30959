"""Entry point of `embedding-server` and `python -m server`: hears signals before the long imports."""

# Built in, so that it is there at once: what `signal` imports takes as long as Python's own start.
import _signal  # type: ignore[import-not-found]
import os


def main() -> None:
    """Run the command; see `cli.main`."""
    if _signal.getsignal(_signal.SIGINT) == _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, lambda number, _frame: os._exit(128 + number))
    from server.program.termination import end_at_once_when_stopped

    end_at_once_when_stopped()
    from server.program.standard_streams import open_standard_streams, whole_output

    open_standard_streams()
    from server.commands import cli

    with whole_output():
        cli.main()


if __name__ == "__main__":
    main()
