"""`python -m fastconv.bench`: the same as `fastconv bench`."""

import argparse
import sys

from fastconv.bench.cli import add_arguments, run

parser = argparse.ArgumentParser(prog="fastconv bench", description="Times fastconv beside torch.")
add_arguments(parser)
sys.exit(run(parser.parse_args()))
