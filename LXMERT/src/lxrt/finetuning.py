"""Finetuning and testing LXMERT on visual question answering: what src/tasks/vqa.py runs."""

from __future__ import annotations

from common.tasks.vqa_command import VQAProgram
from lxrt.building import build, chosen_size, make_inputs
from lxrt.options import RECIPES, TINY, ModelOptions, add_model_options, model_options
from lxrt.sizes import HOME

PROGRAM = VQAProgram[ModelOptions](
    home=HOME,
    script="src/tasks/vqa.py",
    description="Finetune and test LXMERT on visual question answering, plainly or adaptively. "
    "Called by run/vqa_finetune.bash and run/vqa_test.bash.",
    add_options=add_model_options,
    model_options=model_options,
    size=chosen_size,
    build=build,
    make_inputs=make_inputs,
    recipes=RECIPES,
    tiny=TINY,
)
main = PROGRAM.main()
