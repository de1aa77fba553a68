"""``accelerate launch -m pipeline RECIPE ...`` is ``gonggam run RECIPE ...`` on every process of the launch."""

import sys

from pipeline.cli import main

main(["run", *sys.argv[1:]])
