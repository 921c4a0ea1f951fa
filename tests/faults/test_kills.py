"""A short run of `kills.py`, in a separate process, because trainings are forked from a process with one thread."""


def test_killed_trainings_resume_to_the_same_weights(launch):
    output = launch(
        "python",
        "tests/faults/campaign.py",
        *("--kinds", "averaged weights", "--kills", 2, "--disks", 1, "--shards", 0, "--inputs", 0, "--minutes", 20),
        timeout=900,
    )
    assert "averaged weights: {'right result': 4}" in output
    # file size limit, vanished folder, folder that became a file, and, for a superuser, a full disk
    assert output.count("| disk: ") in (3, 4)
    # of two runs into one folder one is refused; by default each gets its own folder
    assert "| two runs at once | 1 | 1 | 0 | 0 | 0 |" in output
