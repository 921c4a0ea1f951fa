"""A short run of `kills.py`, in a process of its own: trainings are forked from one that has no other threads."""


def test_killed_trainings_resume_to_the_same_weights(launch):
    output = launch(
        "python",
        "tests/faults/campaign.py",
        *("--kinds", "averaged weights", "--kills", 2, "--disks", 1, "--inputs", 0, "--minutes", 20),
        timeout=900,
    )
    assert "averaged weights: {'right result': 4}" in output
    # it fills up, files may not grow, the folder vanishes or becomes a file; a disk of its own takes a superuser
    assert output.count("| disk: ") in (3, 4)
    # of two into one folder one is refused; by default each has its own
    assert "| two runs at once | 1 | 1 | 0 | 0 | 0 |" in output
