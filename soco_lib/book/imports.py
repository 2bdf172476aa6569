"""Whether what was set up can be imported, as the last step of set-up: `python -I soco_lib/book/imports.py`."""

import subprocess
import sys

#: What the last line of an error is about -> the remedy.
REMEDIES = {
    ("libGL", "libgthread"): "another OpenCV shadows the headless one; pip uninstall opencv-python "
    "opencv-contrib-python, then make setup (or install libgl1 and libglib2.0-0)",
    ("detectron2",): "try the pinned Detectron2, make setup DETECTRON2=pinned",
    ("",): f"remove {sys.prefix} and run make setup again",
}


def main() -> str | None:
    """The sentence on what cannot be imported; in a process of its own, for a library may end it."""
    command = [sys.executable, "-W", "ignore", "-c", "import torch, cv2, detectron2"]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")
    said = [f"importing torch, cv2, detectron2 ended with status {done.returncode}", *done.stderr.split("\n")]
    remedy = next(remedy for signs, remedy in REMEDIES.items() if any(sign in done.stderr for sign in signs))
    return f"setup: {[line for line in said if line.strip()][-1]}: {remedy}" if done.returncode else None


if __name__ == "__main__":
    sys.exit(main())
