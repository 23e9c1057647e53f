"""What can be asked of an inspection: nothing that is asked for is passed over in silence."""

import pytest

from tests.contract.reduced import shared
from vitrail.inspection.look import Rollout
from vitrail.inspection.report import Choices, check_choices
from vitrail.kit.errors import Error

VIT, BIT = "vit_tiny_patch16_224", "resnetv2_50x1_bit"


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        (VIT, {"figures": ["filters"], "heads": [1]}, "--heads would be passed over: add atten"),
        (VIT, {"figures": ["rollout"], "layers": ["1"]}, "--layers would be passed over"),
        (VIT, {"figures": ["distance"], "rollout": Rollout("max")}, "add rollout or attention to"),
        (VIT, {"figures": ["filters"], "explain": 2}, "add explanations to --figures"),
        (BIT, {"rollout": Rollout(discard=0.5)}, "has no attention from place to place"),
        (BIT, {"heads": [0]}, "has no attention from place to place"),
        (VIT, {"figures": ["neighbours"], "show": 0}, "--show 0 leaves none"),
        (VIT, {"figures": ["explanations"], "explain": 0}, "--explain 0 leaves none"),
        (VIT, {"explain": -1}, "--explain is how many"),
        (VIT, {"heads": [-1]}, "there is no head -1"),
    ],
)
def test_what_would_be_passed_over_is_refused(model, words, said):
    with pytest.raises(Error, match=said):
        check_choices(shared(model), Choices(**words))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (VIT, {}),
        (VIT, {"explain": 0}),
        (VIT, {"figures": ["filters"], "explain": 0}),
        (VIT, {"show": 0}),
        (VIT, {"explain": 9}),
        (VIT, {"heads": [0], "layers": ["0"]}),
        (VIT, {"rollout": Rollout("min")}),
        (VIT, {"figures": ["attention"], "rollout": Rollout("min")}),  # it has rollout at its side
        (BIT, {"explain": 2}),
        (BIT, {"figures": ["maps"]}),
    ],
)
def test_what_some_figure_uses_is_taken(model, words):
    check_choices(shared(model), Choices(**words))
