"""Patients: a deployment as the doctor sees it, whole, for tests that break one thing in it."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streams import doctor
from streams.doctor_check import Check, Context
from streams.fold import Fold
from streams.settings import Settings
from streams.snapshots import Bound, SnapshotFolder
from streams.topology import stages
from streams.vault import Vault
from tests.logfolder import CLUSTER

Broken = Callable[[Settings], Context]


def named(name: str) -> doctor.Look:
    return next(one for one in (*doctor.HERE, *doctor.ASKED) if doctor.name_of(one) == name)


def only(check: doctor.Look, context: Context) -> Check:
    """Run one check as the doctor does."""
    return asyncio.run(doctor._one(check, context))


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def snapshot(settings: Settings, log: str = CLUSTER, width: int | None = None) -> Path:
    stage = next(one for one in stages() if one.name == "rewards")
    folder = SnapshotFolder(settings.data / "snapshots")
    vault = Vault(settings.data / "vault" / "keys.sqlite")
    fold = Fold(stage, 0, settings.partitions, vault)
    vault.close()
    bound = Bound("rewards", stage.version, 0, f"{log}/signals/id", width or settings.partitions)
    claim = folder.claim(bound)
    for _ in range(2):
        folder.write(fold, bound, claim)
    return settings.data / "snapshots" / "rewards-0" / "snapshot"


def context_of(settings: Settings, **more: Any) -> Context:
    return Context(settings, env={"PATH": os.environ["PATH"]}, **more)


def torn(both: bool) -> Broken:
    def broken(settings: Settings) -> Context:
        path = settings.data / "snapshots" / "rewards-0" / "snapshot"
        flip(path)
        if both:
            flip(path.with_name("snapshot.previous"))
        return context_of(settings)

    return broken
