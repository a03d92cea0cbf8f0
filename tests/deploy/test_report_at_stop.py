"""A run that is stopped leaves a report of what there is; how it ended is not hidden by it."""

import io

import pytest
from rich.console import Console

from common.errors import RunStopped
from deploy.exit_codes import GUARDED
from deploy.run import report_if_stopped


@pytest.mark.parametrize("files", [{}, {"metrics.jsonl": "{\n{}\n"}, {"report.html": "of an earlier run"}])
def test_an_end_on_purpose_is_what_it_was_whether_its_report_can_be_written_or_not(tmp_path, files):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    console = Console(file=io.StringIO(), width=300)
    stopped = RunStopped("kl is beyond its limit", reason="guard", exit_code=GUARDED)
    with pytest.raises(RunStopped) as raised, report_if_stopped(tmp_path, console):
        raise stopped
    assert raised.value is stopped
    told = console.file.getvalue()
    if "metrics.jsonl" in files:
        assert "Caution: report.html could not be written: DataError: " in told
        assert "metrics.jsonl:1" in told
        assert not (tmp_path / "report.html").exists()
    else:
        assert f"what there is so far: {tmp_path / 'report.html'}" in told
        assert "<html" in (tmp_path / "report.html").read_text()


def test_other_ends_leave_no_report(tmp_path):
    for error in (KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)), report_if_stopped(tmp_path, Console(file=io.StringIO())):
            raise error
    assert list(tmp_path.iterdir()) == []
