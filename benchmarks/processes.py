"""Work in a process of its own, from its start to its end: CPU seconds and peak memory."""

import json
import subprocess
import sys
from typing import Any

MEASURE = """
import json, resource, sys
from pathlib import Path
result = {{}}
{work}
used = resource.getrusage(resource.RUSAGE_SELF)
peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
result["cpu_seconds"] = round(used.ru_utime + used.ru_stime, 2)
result["peak_gb"] = round(peak / 1e9, 3)
print(json.dumps(result))
"""


def measured(work: str, *arguments: object) -> dict[str, Any]:
    """Run Python code, which may add to `result`; it finds the arguments in `sys.argv`."""
    command = [sys.executable, "-c", MEASURE.format(work=work), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
