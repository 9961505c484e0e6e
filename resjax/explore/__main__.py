"""Shows finished runs on a local page: python -m resjax.explore runs/gate_sig-1234abcd [RUN_DIR ...]

Pick three test images and a run, see the plane through them, drag a point on it, and watch the image under it, its
logits, and the masks and gates of every merge. The runs share their test images. The page is served to this machine
alone, and loads nothing from elsewhere. Exit code 2: bad input, said in one line. Ctrl-C ends it.
"""

import argparse
import asyncio
import os
import signal
import sys

from resjax.config import ConfigError

HOST = "127.0.0.1"


def main(argv: list[str] | None = None) -> int:
    """Runs the program; returns its exit code."""
    parser = argparse.ArgumentParser(
        "python -m resjax.explore", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN_DIR", help="a finished run, as resjax.main names it at its end")
    parser.add_argument("--port", type=int, default=5006, help="of the page (5006)")
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    args = parser.parse_args(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        return _serve(args.runs, args.port, browser=not args.no_browser)
    except ConfigError as error:
        print("error:", error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def _serve(run_dirs: list[str], port: int, *, browser: bool) -> int:
    try:
        from bokeh.server.server import Server
    except ModuleNotFoundError as error:
        if error.name.partition(".")[0] != "bokeh":
            raise
        raise ConfigError("the explorer needs Bokeh; install it with: pip install '.[explore]'") from None
    from resjax.explore import model, page  # after the flags: a bad one need not wait for JAX
    from resjax.runtime import startup

    if not 0 < port < 2**16:
        raise ConfigError(f"--port={port}: choose one from 1 to 65535")
    opened = []
    try:  # before the runs are opened, which takes longer than to find the port taken
        server = Server(
            {"/": lambda document: page.Page(document, *opened) and None},
            address=HOST, port=port, allow_websocket_origin=[f"{host}:{port}" for host in (HOST, "localhost")],
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(f"--port={port}: {error.strerror}; choose another") from None
    startup.keep_compiled_programs("")
    opened += model.open_runs(run_dirs)
    runs = len(opened[0])
    _stop_at_ctrl_c(server.io_loop.asyncio_loop)
    print(f"http://{HOST}:{port}/ shows {runs} run{'s' * (runs > 1)}; Ctrl-C ends it", flush=True)
    server.start()
    if browser:
        server.io_loop.add_callback(server.show, "/")
    try:
        server.io_loop.start()
    finally:
        server.stop()
    return 0


def _stop_at_ctrl_c(loop: asyncio.AbstractEventLoop) -> None:
    """Ctrl-C ends the loop after what it is doing; once more: at once.

    As an exception it can be lost: what a garbage collector's callback raises, as JAX has one, Python prints and drops.
    """

    def stop(*_):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        loop.call_soon_threadsafe(loop.stop)

    signal.signal(signal.SIGINT, stop)


if __name__ == "__main__":
    sys.exit(main())
