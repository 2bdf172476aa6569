"""What `make` was asked for, looked at once before anything is built. Standard library alone: it runs before set-up.

    python -IS soco_lib/book/asked.py VARIABLES GOALS ENVIRONMENT PICTURES [NAME=VALUE]...

VARIABLES are the names that there are, each of which has a VALUE; PICTURES are the images to pretrain on. Prints what
make takes apart at the blanks: `refused:` and a sentence; or the folder of the proposals of PICTURES, the quickstart's
runs without their last part, launch options and RUNS in YAML, and ARGS in words of bash that expand nothing.
"""

import glob
import json
import os
import re
import shlex
import sys
from fnmatch import fnmatchcase

ROOT = os.path.realpath(os.path.join(__file__, "../../.."))
#: Names that make may be given beside VARIABLES: its own, some of the Makefile's, and what programs' environment holds.
OTHERS = """.* -* MAKE* SHELL PY PIP ENV TOGETHER SOCO_* PYTHON* OMP_* CUDA_* TORCH_* NCCL_* SLURM_* CONDA_* VIRTUAL_ENV
HOME TMPDIR PATH""".split()
LAUNCH = "LAUNCH GPUS NODES RENDEZVOUS RESTARTS LAUNCHER PARTITION MINUTES CPUS".split()
#: What the shell reads as more than itself, blanks aside.
SIGNS = re.compile(r"""['"`;$(){}&|<>*?\[\]!]""")
#: Variables, the form of their values, and what is said of another.
FORMS = [
    ("SEED", r"\d+", "must be a whole number"),
    ("GPUS NODES RESTARTS MINUTES CPUS JOBS", r"\d*", "must be a whole number"),
    ("GPUS NODES MINUTES JOBS", r"|.*[1-9].*", "must be at least 1"),
    ("SEEDS", r"\d+(,\d+)*", "must be whole numbers joined by commas, as SEEDS=0,1"),
    ("PLAN MEASURE RECORDED QUICK DEEP", "1?", "is a switch: 1, or leave it out"),
    ("LAUNCHER", "|local|slurm", "is unknown: local or slurm"),
    ("RUN", rf"((?!\s|{SIGNS.pattern}).)*|.*/.*", "is no folder's name: use letters, digits and _ - . +"),
    ("RESULTS", r".*\S.*", "names no folder: leave it out for results/"),
]


def refusal(known: list, goals: list, environment: str, given: dict) -> str:
    """The sentence on the first mistake, "" where there is none."""
    for name in given:
        if name not in known and not any(fnmatchcase(name, other) for other in OTHERS):
            import difflib  # it takes a while, and is seldom needed

            near = "".join(f": did you mean {match}=?" for match in difflib.get_close_matches(name.upper(), known, 1))
            return f"there is no variable {name}={near} (`make variables` lists all)"
    for names, form, said in FORMS:
        for name in names.split():
            if not re.fullmatch(form, given[name], re.ASCII | re.DOTALL):
                return f"{name}={given[name]} {said}"
    files = glob.glob(os.path.join(glob.escape(ROOT), "notebooks/params/pretrain-*.yaml"))
    profiles = {"toy", "paper", *(os.path.basename(file)[len("pretrain-") : -len(".yaml")] for file in files)}
    profiles |= {"all"} if any(goal.startswith("table") for goal in goals) else set()
    if given["PROFILE"] not in profiles:
        return f"PROFILE={given['PROFILE']} is no scale: {' '.join(sorted(profiles))}"
    if SIGNS.search(" ".join(goals)):
        return f"there is no target {' '.join(goals)}: `make` lists them"
    if re.search(rf"\s|{SIGNS.pattern}", environment):
        said = "the active environment's path has a space or a sign of the shell's"
        return f"{said} ({environment}): deactivate it, and .venv is used"
    results = given["RESULTS"]
    if odd(results) and any(goal in ("quickstart", "gallery") or goal.startswith("quickstart") for goal in goals):
        return f"make knows files by names without spaces and signs: RESULTS={results} will not do for the quickstart"
    try:
        shlex.split(given["ARGS"])
    except ValueError:
        return f"ARGS={given['ARGS']} ends within quotes or after a backslash: close them, or write \\' for a quote"
    return ""


def odd(folder: str) -> bool:
    """Whether make cannot name files in it."""
    return bool(re.search(rf"[\s:%#=\\~]|{SIGNS.pattern}", folder))


def name_of(spec: str) -> str:
    """What a folder of proposals is called by: the last part of the images' path, without its suffix."""
    last = re.sub(r"\.[^.]*$", "", re.split("[/:]", spec.split("@")[0].rstrip("/"))[-1])
    return re.sub("^[^A-Za-z0-9]+|-+$", "", re.sub(r"[^A-Za-z0-9_+.]+", "-", last)) or "images"


def resolved(path: str) -> str:
    """One spelling of a path, found as by soco_lib.locate: links followed, below the checkout seen from there."""
    path = os.path.expanduser(path)
    places = [os.path.join(base, path) for base in (ROOT, os.path.expanduser(os.environ.get("SOCO_DATA") or ROOT))]
    there = os.path.realpath(next(filter(os.path.exists, places), places[0]))
    return there[len(ROOT) + 1 :] if there.startswith(ROOT + os.sep) else there


def images(spec: str) -> str:
    """One spelling of what names images (see data.sources.open_source), however its paths are written."""
    kind, path = re.fullmatch(r"(?:folder:)?((?:[a-z-]+:)?)(.*)", spec.strip(), re.DOTALL).groups()
    path, at, extra = path.rpartition("@") if "@" in path and not os.path.exists(resolved(path)) else (path, "", "")
    return kind + resolved(path) + at + (resolved(extra) if kind == "coco:" else extra)


def cksum(text: bytes) -> int:
    """The number that POSIX's `cksum` prints."""
    crc, size = 0, len(text)
    for byte in (*text, *size.to_bytes((size.bit_length() + 7) // 8, "little")):
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ 0x04C11DB7 * (crc >> 31)) & 0xFFFFFFFF
    return crc ^ 0xFFFFFFFF


def proposals(spec: str) -> str:
    """The folder of the proposals of the images `spec`: data/scenes-proposals for the scenes to learn from; else data/,
    `name_of`, a number of the whole of it (photos/cats and pets/cats are two), -proposals; or the one that is there
    and called so, or was by how its images were written (by relative paths, or without a number), of the same images.
    """
    same = images(spec)
    if same == images("coco:data/scenes/annotations/instances_train.json"):
        return "data/scenes-proposals"
    found = []
    for file in ("store.json", "shards/plan.json"):
        for path in glob.glob(os.path.join(glob.escape(ROOT), "data/*-proposals", file)):
            try:
                with open(path, encoding="utf-8") as text:
                    source = json.load(text)["source"].strip()
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            folder = os.path.relpath(path[: -len(file)], ROOT)
            names = "|".join(map(re.escape, {name_of(source), name_of(images(source))}))
            if images(source) == same and re.fullmatch(rf"data/({names})(-\d+)?-proposals", folder):
                found.append((source != spec, file != "store.json", folder))
    return min(found)[2] if found else f"data/{name_of(same)}-{cksum(os.fsencode(same))}-proposals"


def word(text: str) -> str:
    """One word of bash without a blank in it, which make would take for the end of it."""
    if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII):
        return text
    return "$'" + re.sub(r"[\x00-\x20\\']", lambda sign: f"\\{ord(sign[0]):03o}", text) + "'"


def yaml(value) -> str:
    """YAML, by way of JSON, without a blank in it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).replace(" ", "\\u0020")


def main(variables: str, goals: str, environment: str, pictures: str, *given: str) -> None:
    """Command line."""
    sys.stdout.reconfigure(errors="surrogateescape")  # bytes of a value that are no text
    values = dict(text.split("=", 1) for text in given)
    if said := refusal(variables.split(), goals.split(), environment, values):
        print("refused:", said)
        return
    quickstart = os.path.join("" if odd(values["RESULTS"]) else values["RESULTS"], "quickstart")
    how = {name: values[name] for name in LAUNCH if values[name]}
    arguments = map(word, shlex.split(values["ARGS"]))
    print(proposals(pictures), quickstart, yaml(how), yaml(values["RUNS"].split()), *arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
