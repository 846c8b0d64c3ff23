"""A door for faults that no signal can make. Python runs this at its start where a test put this folder on its path.

VSR_TEST_FAULT says what goes wrong in every worker process: "poison N" ends it at the first frame of segment N, as a
bug in a driver would; "hang N" makes decoding stand still there, once: the file VSR_TEST_FAULT_ONCE says that it did.
VSR_TEST_CLOCK_SECONDS sets the clock that tells the date so much forward (or back); the steady clock stays.
"""

import os
import sys
import time
from pathlib import Path

if clock_seconds := os.environ.get("VSR_TEST_CLOCK_SECONDS"):
    import datetime

    import time_machine

    there = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=float(clock_seconds))
    time_machine.travel(there, tick=True).start()

if "worker.process" in sys.orig_argv and (fault := os.environ.get("VSR_TEST_FAULT")):
    import worker.tasks

    kind, segment = fault.split()
    render_segment = worker.tasks.render_segment

    def render_with_fault(plan: object, index: int, *arguments: object, **more: object) -> None:
        if index == int(segment):
            if kind == "poison":
                os._exit(99)
            once = Path(os.environ["VSR_TEST_FAULT_ONCE"])
            if not once.exists():
                once.touch()
                time.sleep(600)
        render_segment(plan, index, *arguments, **more)  # type: ignore[arg-type]

    worker.tasks.render_segment = render_with_fault  # type: ignore[assignment]
