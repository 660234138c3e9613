"""Does the suite notice? Applies one mutant at a time to a copy of src/vrpo and runs the tests that must fail.

    python -m tests.mutants.run            # all, a few minutes
    python -m tests.mutants.run slope K    # those whose name contains a word

Exit status 1 if a mutant survives, no longer applies, or breaks more than a test. The working tree is not touched.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.mutants.catalogue import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]


def run_tests(source: Path, tests: tuple[str, ...]) -> tuple[int, str]:
    """pytest's exit status and output, with `source` in place of the installed package."""
    environment = os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    environment["HYPOTHESIS_STORAGE_DIRECTORY"] = str(source / ".hypothesis")
    where = "import vrpo, sys; sys.exit(not vrpo.__file__.startswith(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", where, str(source)], env=environment, cwd=source, check=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", *tests]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def verdict(mutant: Mutant | None, tests: tuple[str, ...]) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder).resolve()
        shutil.copytree(vrpo_source(), source / "vrpo", ignore=shutil.ignore_patterns("__pycache__"))
        if mutant is not None:
            mutant.apply(source / "vrpo")
        return run_tests(source, tests)


def vrpo_source() -> Path:
    """The package under test: $VRPO_SOURCE or the one in this repository."""
    return Path(os.environ.get("VRPO_SOURCE", ROOT / "src" / "vrpo"))


def main(words: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not words or any(word in mutant.name for word in words)]
    every_test = tuple(sorted({test for mutant in chosen for test in mutant.tests}))
    status, output = verdict(None, every_test)
    if status != 0:
        print(output, "\nthe tests fail without any mutant: nothing can be learned", file=sys.stderr)
        return 1
    bad = []
    for mutant in chosen:
        start = time.monotonic()
        try:
            status, output = verdict(mutant, mutant.tests)
        except LookupError as error:
            status, output = -1, str(error)
        result = {0: "SURVIVED", 1: "killed"}.get(status, "BROKEN")
        by = [line.split(" ", 1)[1] for line in output.splitlines() if line.startswith(("FAILED ", "ERROR "))]
        print(f"{result:9} {time.monotonic() - start:5.1f} s  {mutant.name}  <- {' '.join(by)}", flush=True)
        if status != 1:
            bad.append(mutant.name)
            print(output[-1500:] if status != 0 else "", end="", flush=True)
    print(f"{len(chosen) - len(bad)} of {len(chosen)} mutants killed")
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
