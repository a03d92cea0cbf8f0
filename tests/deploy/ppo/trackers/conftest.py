"""Reads back what trackers left: TensorBoard's event files and wandb's offline runs, as their formats are defined."""

import struct
import time

import pytest

from deploy.tracking.trackers import TrackedRun

DEADLINE_S = 60.0


def events_of(folder):
    """Events of all files in the order of their names: records of length, its checksum, data, their checksum."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2", reason="the extra tensorboard is not installed")
    for path in sorted(folder.iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            yield event_pb2.Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4


@pytest.fixture(scope="session")
def read_tensorboard():
    """Scalars by tag, and texts by tag, as [(step, value)] after TensorBoard's rule of restarts.

    A mark of a start at step s, unless it is the first one, takes back what stands before it and is of step s or later
    (TensorBoard, plugin_event_accumulator.py, `_CheckForRestartAndMaybePurge`).
    """

    def read(folder):
        kept, has_started = [], False
        for event in events_of(folder):
            if event.session_log.status and has_started:
                kept = [earlier for earlier in kept if earlier.step < event.step]
            has_started = has_started or bool(event.session_log.status)
            kept.append(event)
        scalars, texts = {}, {}
        for event in kept:
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
                elif value.metadata.plugin_data.plugin_name == "text":
                    texts.setdefault(value.tag, []).append((event.step, value.tensor.string_val[0].decode()))
        return scalars, texts

    return read


@pytest.fixture(scope="session")
def read_hyperparameters():
    """Hyperparameters by name, and how often a session ended well."""

    def read(folder):
        plugin = pytest.importorskip("tensorboardX.proto.plugin_hparams_pb2")
        found, ended = {}, 0
        for event in events_of(folder):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "hparams":
                    data = plugin.HParamsPluginData.FromString(value.metadata.plugin_data.content)
                    for name, item in data.session_start_info.hparams.items():
                        found[name] = getattr(item, item.WhichOneof("kind"))
                    ended += data.HasField("session_end_info")
        return found, ended

    return read


@pytest.fixture(scope="session")
def read_wandb():
    """What a finished offline run holds: history rows by step, the settings, and the id."""

    def read(folder):
        rows, settings, run_id = {}, {}, None
        for record in whole_run(folder):
            if record.HasField("run"):
                run_id = record.run.run_id
                settings |= {item.key: item.value_json for item in record.run.config.update}
            if record.HasField("history"):
                row = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
                rows[record.history.step.num] = row
        return rows, settings, run_id

    return read


def whole_run(folder):
    """The records of a run that was finished, once wandb's own process has written the last of them."""
    internal = pytest.importorskip("wandb.proto.wandb_internal_pb2", reason="the extra wandb is not installed")
    (path,) = folder.glob("run-*.wandb")
    end = time.monotonic() + DEADLINE_S
    while True:
        records = [internal.Record.FromString(data) for data in records_of(path.read_bytes())]
        if any(record.HasField("exit") for record in records):
            return records
        assert time.monotonic() < end, f"{path} has no end"
        time.sleep(0.02)


def records_of(data, block=32_768):
    """A .wandb file is a log in LevelDB's format: blocks of fragments with a header of checksum, length and kind."""
    at, parts = 7, []  # wandb's own header comes first
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
            continue
        _, size, kind = struct.unpack_from("<IHB", data, at)
        parts.append(data[at + 7 : at + 7 + size])
        at += 7 + size
        if kind in (1, 4):  # whole, or last
            yield b"".join(parts)
            parts = []


@pytest.fixture
def tracked(tmp_path):
    """A run to track."""
    return TrackedRun(
        "mine", tmp_path, {"ppo.clip_eps": 0.2, "ppo.updates": 3, "name": "mine", "control.enabled": True}
    )
