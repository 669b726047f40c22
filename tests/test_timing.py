"""What a measurement says of itself."""

from lamm.bench.timing import provenance


def test_the_command_names_files_and_no_folder(monkeypatch):
    words = ["/home/somebody/benchmarks/x.py", "/data/batch.extxyz", "--rounds", "2"]
    monkeypatch.setattr("sys.argv", words)
    assert provenance(0)["command"] == "x.py batch.extxyz --rounds 2"
