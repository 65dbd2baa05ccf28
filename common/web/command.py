"""Ask finetuned models on a page in the browser.

python -m common.web --run LXMERT/snap/vqa/v1
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from common.ask.answerer import AnswererOptions
from common.errors import AdaptiveError, ConfigError
from common.files import write_bytes
from common.projects import vqa_data
from common.voice import spoken
from common.web.address import LOCAL, free_port
from common.web.runs import ExamplePicture, Runs, find_runs
from common.web.uploads import Limits

PROGRAM = "python -m common.web"
PORT = 7860
EXAMPLES = 6
INSTALL = "pip install -c constraints.txt -e '.[web]' in the repository (or pip install gradio)"


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m common.web`."""
    made = argparse.ArgumentParser(
        prog=PROGRAM,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="A page in the browser: give a picture and a question, and see what one or two "
        "finetuned runs answer,\nwhich regions they look at, and what was decided for this pair "
        "beside the run's average.",
        epilog="Nothing is loaded from another machine or sent to one. Uploads are kept in a "
        "temporary folder that is\ndeleted at the end, or about an hour after their upload. Ctrl-C "
        "ends it. Exit status: 0 ended, 2 an error.",
    )
    made.add_argument(
        "--run",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="folder of a run, with BEST.safetensors; may be given several times, two are shown "
        "side by side (default: all that are found in the backbones' folders, the newest first)",
    )
    made.add_argument(
        "--detector",
        metavar="FOLDER",
        help="what finds the regions of your pictures: a folder of weights, or `pixels` (default: "
        "pixels, for runs that were trained with it)",
    )
    made.add_argument(
        "--data", type=Path, metavar="DIR", help=f"folder of VQA v2's files (default {vqa_data()})"
    )
    made.add_argument(
        "--examples",
        type=int,
        default=EXAMPLES,
        metavar="N",
        help="pictures of the first run's data set that can be chosen (default %(default)s)",
    )
    server = made.add_argument_group("the server")
    server.add_argument(
        "--host",
        default=LOCAL[0],
        help="address to listen on (default %(default)s, this machine alone; 0.0.0.0: whoever "
        "reaches this machine can ask, there is no password)",
    )
    server.add_argument(
        "--port", type=int, default=PORT, help="default %(default)s; 0: any that is free"
    )
    limits = made.add_argument_group("what is taken from the browser")
    for name, unit in (("megabytes", "MiB of a file"), ("megapixels", "of a picture")):
        limits.add_argument(
            f"--max-{name}",
            type=float,
            default=getattr(Limits, name),
            metavar="N",
            help=f"{unit} (default %(default)g)",
        )
    return made


@spoken
def main(arguments: Sequence[str]) -> int:
    """Command line; returns the exit status."""
    args = parser().parse_args(arguments)
    check_gradio()
    limits = Limits(args.max_megabytes, args.max_megapixels)
    port = free_port(args.host, args.port)
    if args.examples < 0:
        raise ConfigError(f"--examples {args.examples}: give 0 or more")
    options = AnswererOptions(detector=args.detector, data_root=args.data)
    runs = Runs(args.run or find_runs(), options, opened=bool(args.run))
    with (
        stopped_by_signals(),
        tempfile.TemporaryDirectory(prefix="adaptive-finetuning-web-") as folder,
    ):
        examples, notes = copied_examples(runs, args.examples, Path(folder) / "examples")
        prepare_gradio(Path(folder))
        from common.web.page import make_page
        from common.web.server import serve

        serve(make_page(runs, limits, examples, notes), args.host, port, limits)
    print("ended     uploads are deleted", flush=True)
    return 0


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """SIGTERM and Ctrl-C are a KeyboardInterrupt; further ones do not disturb the cleaning up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def stop(*_: object) -> None:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_gradio() -> None:
    """Raises:
    ConfigError: gradio is not installed; says how to install it.
    """
    if importlib.util.find_spec("gradio") is None:
        raise ConfigError(f"gradio, which makes the page, is not installed: {INSTALL}")


def prepare_gradio(folder: Path) -> None:
    """Say where gradio may write, and that it must not call home; before it is imported."""
    os.environ |= {
        "GRADIO_TEMP_DIR": str(folder / "uploads"),
        "GRADIO_EXAMPLES_CACHE": str(folder / "cached_examples"),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def copied_examples(runs: Runs, count: int, folder: Path) -> tuple[list[ExamplePicture], list[str]]:
    """Examples of the first run's data set, copied to where the page may read them.

    Returns:
        The examples, and what to say where there are none.
    """
    if not count:
        return [], []
    try:
        found = runs.examples(runs.labels[0], count)
    except AdaptiveError as error:
        return [], [f"No example pictures: {str(error).splitlines()[0]}"]
    copies = []
    for each in found:
        copy = folder / each.file.name
        write_bytes(copy, each.file.read_bytes())
        copies.append(ExamplePicture(copy, each.image_id, each.question))
    return copies, []
