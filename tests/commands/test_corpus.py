"""`corpus build` and `corpus info` as a user types them."""

import json

import pytest
from tiny import write_series

from llata_fast.__main__ import main


def test_build_and_info(tmp_path, capsys):
    main(["corpus", "build", str(write_series(tmp_path / "a.csv", rows=50)), "--output", str(tmp_path / "corpus")])
    assert capsys.readouterr().out == f"3 series: {tmp_path / 'corpus'}\n"
    main(["corpus", "info", str(tmp_path / "corpus")])
    text = capsys.readouterr().out
    assert "3 of 3 channels" in text and "150, 50 to 50 a channel" in text and "h (3)" in text
    main(["corpus", "info", str(tmp_path / "corpus"), "--json"])
    info = json.loads(capsys.readouterr().out)
    assert (info["series"], info["steps"], info["frequencies"]) == (3, 150, {"h": 3})


@pytest.mark.parametrize("arguments", [["build", "absent.csv", "--output", "x"], ["info", "absent"]])
def test_mistakes_end_in_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["corpus", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
