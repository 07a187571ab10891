"""Plans of nnU-Net: further configurations, and errors."""

import json
from pathlib import Path

import pytest

from droneseg.core.errors import ConfigurationError
from droneseg.nnunet.paths import NnunetPaths
from droneseg.nnunet.plans import Plan, add_configuration, preprocessed_configurations, read_plans, resolve_plan

BASE = {
    "configurations": {
        "2d": {
            "patch_size": [768, 1024],
            "batch_size": 2,
            "spacing": [1.0, 1.0],
            "architecture": {"arch_kwargs": {"features_per_stage": [32, 64, 512], "n_stages": 8}},
        }
    }
}
KEEP = {"patch_size": None, "batch_size": None, "base_features": None, "max_features": None}


def test_new_configuration_has_the_depth_nnunet_would_choose() -> None:
    plans = add_configuration(BASE, "2d_cpu", patch_size=(512, 512), batch_size=4, base_features=16, max_features=320)
    made = plans["configurations"]["2d_cpu"]
    kwargs = made["architecture"]["arch_kwargs"]
    # nnU-Net's rule: 512 is halved seven times, down to 4
    assert kwargs["n_stages"] == 8
    assert kwargs["features_per_stage"] == [16, 32, 64, 128, 256, 320, 320, 320]
    assert (made["inherits_from"], made["patch_size"], made["batch_size"]) == ("2d", [512, 512], 4)
    assert "2d_cpu" not in BASE["configurations"]


def test_patch_size_is_rounded_up_to_a_multiple_of_the_strides() -> None:
    plans = add_configuration(BASE, "2d_x", **(KEEP | {"patch_size": (100, 130)}))
    patch = plans["configurations"]["2d_x"]["patch_size"]
    assert patch[0] >= 100
    assert patch[1] >= 130
    strides = plans["configurations"]["2d_x"]["architecture"]["arch_kwargs"]["strides"]
    for axis in (0, 1):
        total = 1
        for stride in strides:
            total *= stride[axis]
        assert patch[axis] % total == 0


def test_network_batchnorm_uses_batch_normalisation() -> None:
    plans = add_configuration(BASE, "2d_b", **KEEP, network="batchnorm")
    assert plans["configurations"]["2d_b"]["architecture"]["arch_kwargs"]["norm_op"].endswith("BatchNorm2d")
    with pytest.raises(ConfigurationError, match="nnU-Net's own plan"):
        add_configuration(BASE, "2d", **KEEP, network="batchnorm")


def test_convs_per_stage_applies_to_encoder_and_decoder() -> None:
    plans = add_configuration(BASE, "2d_c", **(KEEP | {"patch_size": (64, 64)}), convs_per_stage=1)
    kwargs = plans["configurations"]["2d_c"]["architecture"]["arch_kwargs"]
    assert kwargs["n_conv_per_stage"] == [1] * kwargs["n_stages"]
    assert kwargs["n_conv_per_stage_decoder"] == [1] * (kwargs["n_stages"] - 1)


def test_configuration_2d_cannot_be_changed() -> None:
    assert add_configuration(BASE, "2d", **KEEP) is BASE
    with pytest.raises(ConfigurationError, match="nnU-Net's own plan"):
        add_configuration(BASE, "2d", **KEEP, convs_per_stage=1)
    with pytest.raises(ConfigurationError, match="configuration=2d_mine"):
        add_configuration(BASE, "2d", **(KEEP | {"batch_size": 4}))


def test_missing_plans_name_the_command_that_writes_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="droneseg preprocess"):
        read_plans(NnunetPaths(tmp_path, tmp_path, tmp_path))


def test_resolved_plan_has_inherited_values_and_the_divisor() -> None:
    base = {"normalization_schemes": ["RGBTo01Normalization"] * 3, "use_mask_for_norm": [False] * 3}
    architecture = {"arch_kwargs": {"strides": [[1, 1], [2, 2], [2, 4]]}}
    own = {"inherits_from": "2d", "patch_size": [64, 96], "architecture": architecture}
    plan = resolve_plan({"configurations": {"2d": base, "2d_own": own}}, "2d_own")
    assert (plan.patch_size, plan.divisor, plan.normalisation) == ((64, 96), (4, 8), "rgb_to_0_1")


@pytest.mark.parametrize(
    ("schemes", "masked", "message"),
    [
        (["CTNormalization"] * 3, False, "Cannot export normalisation"),
        (["RGBTo01Normalization", "ZScoreNormalization"], False, "Cannot export normalisation"),
        (["ZScoreNormalization"] * 3, True, "use_mask_for_norm"),
    ],
)
def test_unsupported_normalisation_is_refused(schemes: list[str], masked: bool, message: str) -> None:
    plan = Plan((64, 64), (32, 32), tuple(schemes), masked_normalisation=masked)
    with pytest.raises(ConfigurationError, match=message):
        _ = plan.normalisation


def test_plans_of_another_name_or_dataset_are_refused_in_one_line(tmp_path: Path) -> None:
    folders = NnunetPaths(tmp_path, tmp_path, tmp_path)
    folders.preprocessed_dataset.mkdir()
    for name in ("dataset", "splits_final", "nnUNetResEncUNetMPlans"):
        (folders.preprocessed_dataset / f"{name}.json").write_text(json.dumps({"dataset_name": "Dataset205_Meadow"}))
    with pytest.raises(ConfigurationError, match=r"missing\. The dataset has the plans nnUNetResEncUNetMPlans"):
        read_plans(folders)
    with pytest.raises(ConfigurationError, match="has the plans of Dataset205_Meadow"):
        read_plans(folders.select(plans="nnUNetResEncUNetMPlans"))
    (folders.preprocessed_dataset / "Own.json").write_text(json.dumps({"plans_name": "nnUNetPlans"}))
    with pytest.raises(ConfigurationError, match=r"Own\.json has the plans_name nnUNetPlans"):
        read_plans(folders.select(plans="Own"))


def test_plans_without_a_2d_configuration_are_refused() -> None:
    plans = {"plans_name": "Own", "configurations": {"3d_fullres": {}}}
    with pytest.raises(ConfigurationError, match="Own have no configuration 2d, only 3d_fullres"):
        add_configuration(plans, "2d_cpu", **KEEP)


def test_own_configuration_of_the_user_is_used_as_it_is() -> None:
    own = {"inherits_from": "2d", "batch_size": 40}
    plans = {"configurations": BASE["configurations"] | {"2d_bs40": own}}
    assert add_configuration(plans, "2d_bs40", **KEEP) is plans
    with pytest.raises(ConfigurationError, match="configuration=2d_bs40 is in the plans, and not by droneseg"):
        add_configuration(plans, "2d_bs40", **(KEEP | {"batch_size": 4}))
    ours = add_configuration(plans, "2d_cpu", **(KEEP | {"batch_size": 4}))
    again = add_configuration(ours, "2d_cpu", **(KEEP | {"batch_size": 8}))
    assert again["configurations"]["2d_cpu"]["batch_size"] == 8


def test_residual_encoder_keeps_the_blocks_of_its_planner() -> None:
    kwargs = {"features_per_stage": [32, 64, 512], "n_blocks_per_stage": [1, 3, 4], "n_conv_per_stage_decoder": [1, 1]}
    base = BASE["configurations"]["2d"] | {"architecture": {"arch_kwargs": kwargs}}
    plans = {"configurations": {"2d": base}}
    made = add_configuration(plans, "2d_r", **(KEEP | {"patch_size": (64, 64)}))["configurations"]["2d_r"]
    made_kwargs = made["architecture"]["arch_kwargs"]
    assert made_kwargs["n_blocks_per_stage"] == [1, 3, 4, 4, 4]
    assert made_kwargs["n_conv_per_stage_decoder"] == [1, 1, 1, 1]
    assert "n_conv_per_stage" not in made_kwargs
    with pytest.raises(ConfigurationError, match="residual blocks, whose number the planner chooses"):
        add_configuration(plans, "2d_r", **KEEP, convs_per_stage=1)


def test_each_folder_of_2d_data_is_preprocessed_once() -> None:
    plans = {
        "configurations": {
            "2d": {"data_identifier": "Own_2d", "patch_size": [64, 64]},
            "2d_bs40": {"inherits_from": "2d", "batch_size": 40},
            "2d_half": {"inherits_from": "2d", "data_identifier": "Own_half"},
            "3d_fullres": {"data_identifier": "Own_3d", "patch_size": [8, 64, 64]},
        }
    }
    assert preprocessed_configurations(plans) == ["2d", "2d_half"]
