"""Parameters are counted by part of the model."""

from tiny import random_backbone, tiny_model

from llata_fast.training.parameters import parameter_counts, parameter_table


def test_parameters_are_counted_by_part(tmp_path):
    model = tiny_model(random_backbone(tmp_path))
    counts = parameter_counts(model)
    assert counts["trained"] + counts["frozen"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["alignment trained"] == 3 * 2 * 48 * 48 and "alignment frozen" not in counts
    rows = {row.split()[0]: row.split()[1:] for row in parameter_table(counts).splitlines()}
    assert rows["alignment"] == [f"{counts['alignment trained']:,}", "0"]
    assert rows["backbone"] == [f"{counts['backbone trained']:,}", f"{counts['backbone frozen']:,}"]
    assert rows["in"][1:] == [f"{counts['trained']:,}", f"{counts['frozen']:,}"]
