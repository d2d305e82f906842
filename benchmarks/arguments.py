"""The arguments that benchmarks share."""

import argparse


def parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """A parser with `--json` and `--quick`; `quick` says what the smaller run leaves out."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", action="store_true", help="the last line is one JSON object in any case")
    made.add_argument("--quick", action="store_true", help=quick)
    return made


def model_parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """The same with `--model`, `--dtype`, `--device` and `--trials`."""
    made = parser(description, quick)
    made.add_argument("--model", default="demo:smollm2-135m")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--device", default="cpu")
    made.add_argument("--trials", type=int)
    return made
