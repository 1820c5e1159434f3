"""A sweep over ring sizes: from a YAML file to a data frame, and to a page with plots.

usage: python examples/ring_sweep.py [experiments/ring-size.yaml [DIRECTORY]]
"""

import asyncio
import sys
from pathlib import Path

from qemu_ring import run_experiment, write_report


async def main(file: str, directory: str) -> None:
    """What has been run already is not run again."""
    results = await run_experiment(file, directory)
    runs = results.frame()  # pandas; a row for each run
    measured = runs[(runs["status"] == "ok") & ~runs["warm_up"]]
    print(measured.groupby("ring_entries")[["seconds", "downtime_seconds"]].median())
    page = Path(directory, "report.html")
    await asyncio.to_thread(write_report, [results], page)
    print(f"{page}, plots beside it")


if __name__ == "__main__":
    defaults = ["experiments/ring-size.yaml", "results/ring-sweep"]
    asyncio.run(main(*(sys.argv[1:] + defaults[len(sys.argv) - 1 :])))
