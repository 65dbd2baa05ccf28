"""Which mistakes: file, text, what takes its place, and the tests that must fail."""

from __future__ import annotations

from dataclasses import dataclass

ADAPT, TRAINING, FEATURES, DATA = (
    "common/adapt",
    "common/training",
    "common/features",
    "common/data",
)
T = "tests/common"
UNNOTICED, POLICY = f"{T}/adapt/test_unnoticed.py", f"{T}/adapt/test_policy.py"
IDENTITIES, ROWS = f"{T}/adapt/test_identities.py", f"{T}/adapt/test_row_routing.py"
EMPTY, NARROW = f"{T}/adapt/test_empty_branches.py", f"{T}/adapt/test_narrowing.py"
STRATEGY, MERGE = f"{T}/adapt/test_strategies.py", f"{T}/adapt/test_merge.py"
LOOP, OPTIM = f"{T}/training/test_training.py", f"{T}/training/test_optim.py"
CHECKPOINT, LOADER = f"{T}/training/test_checkpoint.py", f"{T}/training/test_batch_loader.py"
LOCK, OTHERS = f"{T}/training/test_folder_lock.py", f"{T}/training/test_weights_of_others.py"
PADDING, HALF = f"{T}/training/test_padding.py", f"{T}/tasks/test_gpu_batches.py"
ROOM = f"{T}/tasks/test_evaluation_batches.py"
SAME, TOGETHER = f"{T}/adapt/test_sharing.py", f"{T}/tasks/test_shared_images.py"
STORE, IMPORTS = f"{T}/features/test_features.py", f"{T}/features/test_sources_of_imports.py"
METRIC, ANNOTATIONS = f"{T}/data/test_vqa_metric.py", f"{T}/data/test_annotations.py"
CURVES, TEXTS = f"{T}/test_pinned_curves.py", f"{T}/test_reading.py"
PICTURES, FUZZ = f"{T}/features/test_pictures.py", "tests/fuzz/test_readers.py"
MAKING = f"{T}/own_data/test_making.py"
WEB = "tests/web/test_functions.py"
ODD = "tests/vlbert/test_odd_questions.py"


@dataclass(frozen=True)
class Mutant:
    """A mistake; `tests` are words for pytest."""

    path: str
    before: str
    after: str
    tests: str

    @property
    def name(self) -> str:
        """For the report: file and the first line that changes."""
        return f"{self.path}: {self.before.strip().splitlines()[0]} -> {self.after.strip()[:60]}"


def _all(path: str, tests: str, *changes: tuple[str, str]) -> list[Mutant]:
    return [Mutant(path, before, after, tests) for before, after in changes]


MUTANTS = [
    # Data sets of one's own
    *_all(
        "common/own_data/pictures.py",
        MAKING,
        ('f"split of the data set:{seed}:{content}"', 'f"{seed}:{content}"'),
        ("sorted(set(contents.values()), key=drawn)", "sorted(set(contents), key=drawn)"),
    ),
    *_all(
        "common/own_data/making.py",
        MAKING,
        ("if other.split == row.split:", "if other is not None:"),
        ("wanted, OF_FEATURES,", "wanted, (),"),
        ("_plan(options) if fresh else None", "None"),
        ("        opening()\n", ""),
    ),
    *_all(
        "common/own_data/table.py",
        f"{T}/own_data/test_table.py",
        ("lines &= {row.line for row in rows}", "pass"),
        ("if ID not in without and (first", "if (first"),
        ("if people > FEW_PEOPLE:", "if people > 0:"),
    ),
    # Batches on a GPU
    *_all(
        "VLBERT/vlbert/vqa_dataset.py",
        PADDING,
        ('found, {"boxes": PADDING}, lengths', 'found, {"boxes": 0}, lengths'),
    ),
    *_all(
        "ViLBERT/vilbert/inputs.py",
        PADDING,
        ('"image_attention_mask": 0}', '"image_attention_mask": 1}'),
    ),
    *_all(
        f"{FEATURES}/sources.py",
        HALF,
        ("key=lambda dtype: dtype.itemsize)", "key=lambda dtype: -dtype.itemsize)"),
    ),
    *_all(
        f"{FEATURES}/store.py",
        HALF,
        (
            "precise = features.to(torch.promote_types(features.dtype, torch.float32))",
            "precise = features",
        ),
    ),
    *_all(
        "common/tasks/evaluation_batches.py",
        ROOM,
        ("torch.cuda.empty_cache()", "done += len(places)"),
        (
            "self.size, self._grows = self.size // 2, False",
            "self.size, self._grows = self.size // 2, True",
        ),
        ("return list(world.share(range(samples)))", "return list(range(samples))"),
    ),
    # Several questions about one image
    *_all(
        f"{ADAPT}/sharing.py",
        SAME,
        ("rows = rows.refined(decisions[:, list(columns)])", "pass"),
        ("return self if len(found) == len(self) else found", "return found"),
        ("places = known.group[rows.first]", "places = known.group[known.first]"),
        ("alone and None not in found", "alone"),
        ("if active and state.get(PAIR) is None else None", "if active else None"),
        ("or present_watchers()", ""),
    ),
    Mutant(
        f"{ADAPT}/encoder.py", "not (self.training or self.by_place)", "not self.training", SAME
    ),
    *_all(
        "common/tasks/vqa.py",
        TOGETHER,
        ("{question: predictions[question] for question in asked}", "dict(predictions)"),
    ),
    Mutant(
        "common/tasks/evaluation_batches.py", "[order[place] for place in own]", "own", TOGETHER
    ),
    *_all(
        f"{TRAINING}/optim.py",
        OPTIM,
        (
            'OF_THIS_RUN = ("schedule", "fused", "foreach", "capturable")',
            'OF_THIS_RUN = ("schedule",)',
        ),
    ),
    # Routes, rows, executors
    *_all(
        f"{ADAPT}/dropout.py",
        f"{IDENTITIES} tests/common/adapt/test_dropout.py",
        ("set_generator_state(self.device, self._states[key])", "pass"),
        ("mask = next(self.given)", "mask = torch.rand_like(next(self.given) + 0.0) < 1 - p"),
    ),
    *_all(
        f"{ADAPT}/routes.py",
        f"{IDENTITIES} {EMPTY}",
        ("return run(value ^ flip, state)", "return run(value, state)"),
        ("if self.count(column, value) == self.batch:", "if False:"),
        ("idle = [*parameters((1 - value) ^ flip), *read]", "idle = [*read]"),
        ("order = torch.argsort(hard, dim=0, stable=True)", "order = torch.argsort(-hard, dim=0)"),
    ),
    *_all(
        f"{ADAPT}/row_routing.py",
        ROWS,
        ("return y.index_copy_(0, rows[0], zero)", "return y.index_copy_(0, rows[0], zero * 0)"),
        ("return gradient, product.sum", "return gradient * 0, product.sum"),
        ("dtype = torch.promote_types(zero.dtype, one.dtype)", "dtype = zero.dtype"),
    ),
    *_all(
        "common/modules/packing.py",
        "tests/common/modules/test_packing.py",
        (
            "(self.version, self.address) and torch.equal",
            "(self.version, self.address) or torch.equal",
        ),
        ("if entry is None or not entry.same:", "if entry is None:"),
        ("if torch.is_grad_enabled():", "if False:"),
    ),
    *_all(
        f"{ADAPT}/head_projections.py",
        "tests/common/adapt/test_head_projections.py",
        ("added.addmm_(part, weight[of_head])", "pass"),
        ("torch.sum(part, 0, out=into[place][1][of_head])", "into[place][1][of_head].zero_()"),
        ("torch.where(taken, zero, one)", "torch.where(taken, one, zero)"),
        ("torch.where(taken, gradient, 0)", "gradient.contiguous()"),
    ),
    *_all(
        f"{ADAPT}/executors.py",
        f"{UNNOTICED} {IDENTITIES}",
        ("site.weigh(1 - weights, zero[slot])", "site.weigh(weights, zero[slot])"),
        ("sign = 2 * decisions.detach() - 1", "sign = 1 - 2 * decisions.detach()"),
        ("sign = 2 * decisions.detach() - 1", "sign = decisions.detach()"),
        ("(found[slot] / routing.sampled_share)", "(found[slot])"),
        ("< routing.sampled_share", "< 1.0"),
        ("routing.sampling_noise[:, index]", "routing.sampling_noise[:, 0]"),
        ("return routing.full_precision and low", "return False and low"),
        ("difference = arrangement.back(", "difference = dict("),
    ),
    Mutant(
        f"{ADAPT}/encoder.py",
        "noise = uniform_noise(key, len(decisions), len(self.sites), decisions.device)",
        "noise = uniform_noise(key, len(decisions), 1, decisions.device).expand("
        "-1, len(self.sites))",
        UNNOTICED,
    ),
    # Steps, sites, strategies
    *_all(
        f"{ADAPT}/steps.py",
        f"{UNNOTICED} {IDENTITIES} {NARROW}",
        ("if not whole & written:", "if True:"),
        ("if not whole & written:", "if False:"),
        ("needed |= after", "pass"),
        ("branches[1], q, k, v, self.mask(state)", "branches[1], q, v, k, self.mask(state)"),
    ),
    *_all(
        f"{ADAPT}/strategies.py",
        f"{STRATEGY} {UNNOTICED}",
        ("_check_order(layer.name, layer_live, sites)", "pass"),
        ("start += width", "start += width if kept else 0"),
        ("bool(kept),", "True,"),
    ),
    *_all(
        f"{ADAPT}/adapting.py",
        f"{STRATEGY} {POLICY} tests/lxmert/test_transformers.py",
        ("chosen = layers[: len(layers) - _last", "chosen = layers[len(layers) - _last"),
        ("decisions = (share > 0.5)", "decisions = (share >= 0.0)"),
        ("ranked = torch.where(live, share, -1.0)", "ranked = share"),
        ("protect(model, encoder)", "pass"),
        ("network.float()  #", "pass  #"),
    ),
    Mutant(f"{ADAPT}/encoder.py", "requires_grad_(False)", "requires_grad_(True)", STRATEGY),
    *_all(
        f"{ADAPT}/merging.py",
        MERGE,
        (
            "frozen = decisions[site.columns.start : site.columns.stop] == 0",
            "frozen = decisions[site.columns.start : site.columns.stop] == 1",
        ),
        ("ours[rows] = theirs[rows]", "ours[:] = theirs"),
        ("release(model)", "pass"),
    ),
    # What is counted and compared
    *_all(
        f"{TRAINING}/flops.py",
        f"{T}/training/test_flops.py",
        ("aten._scaled_dot_product_flash_attention_for_cpu: _attention,", ""),
        ("sdpa_backward_flop_count(grad, query, key, value)", "sdpa_flop_count(query, key, value)"),
    ),
    *_all(
        "common/tasks/measuring.py",
        "tests/lxmert/test_measuring.py",
        ("place * len(data) // count", "place"),
        ("counter.total / len(places)", "counter.total / len(data)"),
    ),
    # Policy, noise, budgets
    *_all(
        f"{ADAPT}/gumbel.py",
        f"{POLICY} {UNNOTICED}",
        ("soft = torch.softmax(noisy / temperature", "soft = torch.softmax(noisy"),
        ("hard = (noisy[..., 1] > noisy[..., 0])", "hard = (logits[..., 1] > logits[..., 0])"),
        ("return hard + (soft - soft.detach())", "return hard + 0 * soft"),
        ("+ 0.5) / 2**23", "+ 0.0) / 2**23"),
        ("^ _mix_int(step + 2 * _GOLDEN)", "^ _mix_int(2 * _GOLDEN)"),
    ),
    *_all(
        f"{ADAPT}/policy.py",
        f"{POLICY} {UNNOTICED}",
        ("x = read_stream(inputs.state, stream).detach()", "x = read_stream(inputs.state, stream)"),
        ("parts = [self.read_out.expand(", "parts = [0 * self.read_out.expand("),
        ("present = (mask[:, 0, 0, :, None] == 0)", "present = (mask[:, 0, 0, :, None] <= 0)"),
        ("bias[:, 1] = torch.tensor(share).logit()", "bias[:, 1] = 0.0"),
    ),
    *_all(
        f"{ADAPT}/encoder.py",
        f"{POLICY} {UNNOTICED}",
        ("noise.view_as(logits), temperature)", "noise.view_as(logits), 1.0)"),
        (
            "decisions = (logits[..., 1] > logits[..., 0])",
            "decisions = (logits[..., 1] < logits[..., 0])",
        ),
        ("self.global_decisions.expand(batch, -1)", "self.global_decisions.expand(batch, -1) * 0"),
    ),
    *_all(
        f"{ADAPT}/budget.py",
        f"{POLICY} {UNNOTICED}",
        ("options.target_rate_scale * target_rate", "target_rate"),
        ("options.constrain_k_scale * constrain_k", "constrain_k"),
        ("if options.target_rate is not None:", "if options.target_rate:"),
        ("if options.constrain_k is not None:", "if options.constrain_k:"),
        ("or bool(self.deterministic_scale)", ""),
        ("(1 - p) * (1 - p).log())", "0 * p)"),
        ("((share * live).sum() - k)", "(share.sum() - k)"),
        ("(share * live).sum() / live.sum() - rate", "share.mean() - rate"),
    ),
    # Loop, optimisers, checkpoints
    *_all(
        f"{TRAINING}/moments.py",
        OPTIM,
        ("torch._foreach_add_(root, eps)", "pass"),
        ("grads, grads, 1 - beta2", "grads, grads, 1 - beta1"),
    ),
    *_all(
        f"{TRAINING}/optim.py",
        OPTIM,
        ('-lr * (1 - beta2 ** s["step"]) ** 0.5', "-lr"),
        ("return progress / self.warmup", "return 1.0"),
        ("max((progress - 1.0) / (self.warmup - 1.0), 0.0)", "1.0"),
        ("if max_norm:\n", "if max_norm is not None:\n"),
        ("update >= milestone", "update > milestone"),
        ('self.updates, self._base_lrs = state["updates"]', "self.updates, self._base_lrs = 0"),
    ),
    *_all(
        f"{TRAINING}/loop.py",
        LOOP,
        ('"policy": self.options.policy_clip}', '"policy": self.options.clip}'),
        ('"lr": self.optimizers["main"].lr,', '"lr": 0.0,'),
        ("better = validation.score > self.best_score", "better = True"),
        ("ratio: float = (end / start) ** done", "ratio: float = 1.0"),
        ("self.part.tell(self.options.seed, self.step,", "self.part.tell(self.options.seed, 0,"),
        ('self.step, self.history = progress["step"]', "self.step, self.history = 0"),
        (
            "self.finite.look(computed.losses, batch, self.step)\n            self.passes",
            "self.passes",
        ),
    ),
    Mutant(
        f"{TRAINING}/batch_order.py",
        "(self.seed * 1_000_003 + epoch)",
        "(self.seed * 1_000_003)",
        LOOP,
    ),
    *_all(
        f"{TRAINING}/graphs.py",
        f"{T}/training/test_graphs.py",
        ("own.copy_(given, non_blocking=True)", "pass"),
        ("torch._foreach_zero_(fresh)", "pass"),
        ("own.copy_(parameter.grad)", "pass"),
        ("        if given != self.given:", "        if not self.given:"),
        ("        set_rng_state(state)", "        pass"),
        ("key = (_shapes(batch), stage)", "key = (_shapes(batch), Stage())"),
    ),
    Mutant(
        f"{TRAINING}/loop.py",
        "self.world.average_gradients(self.trained)",
        "pass",
        f"{T}/training/test_distributed.py",
    ),
    Mutant(f"{TRAINING}/batch_loader.py", "raise read.error", "continue", LOADER),
    *_all(
        f"{TRAINING}/checkpoint_codec.py",
        CHECKPOINT,
        ("        tensor.stride(),\n", ""),
        ("value = value.clone()", "pass"),
        ('{"$tuple": items}', "items"),
        ("abs(value) <= EXACT_INTEGER", "True"),
        ("zlib.crc32(as_bytes(tensor).data, zlib.crc32(kind))", "zlib.crc32(kind)"),
    ),
    *_all(
        f"{TRAINING}/weights.py",
        f"{CHECKPOINT} {OTHERS}",
        ("if expected is not None and checksum(tensor) != expected:", "if False:"),
        ("_check_finite(weights, report.loaded, what)\n    model", "model"),
        ("_check_beginning(start, path)\n    if", "if"),
    ),
    Mutant(f"{TRAINING}/folder_lock.py", "fcntl.LOCK_EX | fcntl.LOCK_NB", "fcntl.LOCK_UN", LOCK),
    Mutant(
        f"{TRAINING}/folder_lock.py",
        "if self._still_there():\n            return False",
        "if True:\n            return False",
        LOCK,
    ),
    # Features, questions, answers
    *_all(
        f"{FEATURES}/store.py",
        STORE,
        ("return self._order[places], self._sorted", "return places, self._sorted"),
        ("row[stop - start :].zero_()", "pass"),
        ("self._check_records(rows)", "pass"),
        ("if hashlib.sha256(content).hexdigest() != expected:", "if False:"),
        ("inside = (scaled >= -BOX_TOLERANCE)", "inside = (scaled >= -1)"),
    ),
    *_all(
        f"{FEATURES}/writer.py",
        f"{STORE} {IMPORTS}",
        ("_check_range(image_id, name, values, 0, LARGEST_ID)", "pass"),
        ("_check_range(image_id, name, values, 0, 1 + SHARE_TOLERANCE)", "pass"),
        ("if not bool(torch.isfinite(values.sum(dtype=torch.float64))):", "if False:"),
        ("if rows + entry.count > complete", "if False"),
        ("not image_id.isprintable()", "False"),
    ),
    *_all(
        f"{FEATURES}/importing.py",
        IMPORTS,
        ("if known is not None and known != stamp:", "if False:"),
        (
            'if self._next < len(self._ids):\n            raise self._changed(\n                f"image {record',
            'if False:\n            raise self._changed(\n                f"image {record',
        ),
    ),
    *_all(
        f"{FEATURES}/lxmert_tsv.py",
        f"{IMPORTS} {TEXTS}",
        ("flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)", "flat = (boxes[:, 2:] < -1).any(1)"),
        ('.removeprefix(BOM if number == 1 else b"")', ""),
        ("if line or file.tell()", "if True or file.tell()"),
    ),
    Mutant(f"{FEATURES}/pictures.py", "image = ImageOps.exif_transpose(image)", "pass", PICTURES),
    Mutant(
        f"{FEATURES}/pictures.py",
        '"RGBA", coloured.size, "white"',
        '"RGBA", coloured.size',
        PICTURES,
    ),
    *_all(
        f"{DATA}/annotations.py",
        ANNOTATIONS,
        ('"minival2014": "val2014"', '"minival2014": "train2014"'),
        (
            'part = row.get("coco_split", str, optional=True) or part',
            'part = part or row.get("coco_split", str, optional=True)',
        ),
        ("or not 0 < value <= 1:", "or not 0 <= value:"),
    ),
    *_all(
        f"{DATA}/vqa_metric.py",
        METRIC,
        ("answer = _best(_votes(train))\n", "answer = _best(_votes(val))\n"),
        ("for n in (3, 2, 1))", "for n in (1, 2, 3))"),
        (
            'answers.setdefault("", _best(_votes(train)))',
            'answers.setdefault("", _best(_votes(val)))',
        ),
    ),
    *_all(
        f"{DATA}/answer_scores.py",
        METRIC,
        (
            "selves = matches * min(1.0, (matches - 1) / 3)",
            "selves = matches * min(1.0, matches / 3)",
        ),
        ("min(1.0, matches / 3)\n", "min(1.0, matches / 2)\n"),
        ("if word not in ARTICLES", ""),
    ),
    Mutant(
        "common/reading.py", "json.loads(text, object_hook=replace)", "json.loads(text[1:])", TEXTS
    ),
    Mutant("common/reading.py", "if _written_out(node, {}) > MAX_YAML_NODES:", "if False:", TEXTS),
    # Adaptive attention, LayerDrop
    *_all(
        "common/modules/attention.py",
        f"{T}/modules/test_attention.py {T}/adapt/test_weighted_attention.py",
        ("LEAST_ALPHA + (2 - LEAST_ALPHA) * self.logit", "1 + self.logit"),
        ("mask[:, 0, 0] > MASKED / 2", "mask[:, 0, 0] <= 0"),
        ("shares if heads is None else shares[:, heads]", "shares"),
        ("alpha = self.alpha if heads is None else self.alpha[heads]", "alpha = self.alpha[:1]"),
        (
            "order = (order - places[:queries, None]).abs()",
            "order = places[:queries, None] - order",
        ),
        ("(span.span._version, ", "(0, "),
        ("(reach[0] - LEAST_SHARE).ceil()", "(reach[0] - 1).ceil()"),
    ),
    *_all(
        "common/modules/attention.py",
        f"{T}/adapt/test_attention.py",
        ("nn.init.zeros_(self.shift.weight)", "pass"),
        ("count + len(shares),", "count + 1,"),
    ),
    *_all(
        f"{ADAPT}/weighted_attention.py",
        f"{T}/adapt/test_weighted_attention.py {T}/adapt/test_attention_capture.py",
        (").argsort()\n    return torch.cat", ")\n    return torch.cat"),
        ("k_v = keys[:, :reach]", "k_v = keys"),
        ("if below < reach <= bound", "if reach <= bound"),
        ("F.pad(v, (0, 0, 0, left_out))", "v"),
    ),
    *_all(
        f"{ADAPT}/layerdrop.py",
        f"{T}/adapt/test_layerdrop.py",
        ("if drawn[name] < self.rate", "if drawn[name] > self.rate"),
        ("if len(out) == len(names):", "if False:"),
        (
            "for names in stacks.values() for name in names[::2]",
            "for names in stacks.values() for name in names[1::2]",
        ),
        ("(len(names) + 1) // 2", "len(names) // 2"),
    ),
    Mutant(
        f"{ADAPT}/encoder.py",
        "dropped = encoder.dropped if self.training else frozenset()",
        "dropped = encoder.dropped",
        f"{T}/adapt/test_layerdrop.py",
    ),
    *_all(
        "LXMERT/src/lxrt/adaptive_transformer.py",
        "tests/lxmert/test_building.py",
        ("or TEMPLATE in name", ""),
        ("batch=next(iter(batches), 0),", "batch=1,"),
    ),
    # VL-BERT
    Mutant(
        "common/modules/pixels.py",
        ".permute(2, 0, 1).flip(0)",
        ".permute(2, 0, 1)",
        "tests/vlbert/test_images.py",
    ),
    Mutant(
        "VLBERT/vlbert/vqa_network.py",
        "regions.features.detach()",
        "regions.features",
        "tests/vlbert/test_images.py",
    ),
    Mutant(
        "VLBERT/vlbert/building.py",
        "return replace(found, means=means, deviations=deviations)",
        "return found",
        "tests/vlbert/test_use.py",
    ),
    Mutant(
        f"{FEATURES}/archives.py",
        "place = links if entry.is_symlink() else folders",
        "place = folders",
        f"{T}/detector/test_extracting.py",
    ),
    Mutant(
        "VLBERT/vlbert/vqa_dataset.py", "cut_to_images(regions, sizes)\n        info", "info", ODD
    ),
    # ViLBERT
    *_all(
        "ViLBERT/vilbert/layers.py",
        "tests/vilbert/test_encoder.py",
        ('getattr(both, f"key{asked}")', 'getattr(both, f"key{asking}")'),
        ('getattr(both, f"dropout{asked}")', 'getattr(both, f"dropout{asking}")'),
    ),
    *_all(
        "ViLBERT/vilbert/recipe.py",
        "tests/vilbert/test_recipe.py",
        ('0.0 if name.endswith("bias") or "LayerNorm" in name else weight_decay', "weight_decay"),
        ("classifier_lr if name.startswith(CLASSIFIER) else rate", "rate"),
    ),
    *_all(
        "ViLBERT/vilbert/vqa_data.py",
        "tests/vilbert/test_vqa_data.py",
        ('part("val2014", first=-MINIVAL)', 'part("val2014", last=MINIVAL)'),
        ("found.sort(key=", "sorted(found, key="),
    ),
    *_all(
        "VLBERT/vlbert/pretraining_masking.py",
        "tests/vlbert/test_pretrain_questions.py",
        ("rate = rate.masked_fill(whole, 0.0)", "pass"),
        ("numbers[..., 1].masked_fill_(replies, 0.0)", "pass"),
        ("replies.any(1, keepdim=True) & ~replies", "~replies"),
    ),
    Mutant(
        "VLBERT/vlbert/pretraining_samples.py",
        "return masked & stated, hidden & stated",
        "return masked, hidden",
        "tests/vlbert/test_pretrain_questions.py",
    ),
    Mutant(
        "ViLBERT/vilbert/pretraining_samples.py",
        "stated = (~asked & ~apart)[:, None]",
        "stated = (~apart)[:, None]",
        "tests/vilbert/test_pretraining.py",
    ),
    Mutant(
        "ViLBERT/vilbert/modeling.py",
        "met = self._paired(encoder.run_layers(state, raw, passed, slice(border)))",
        "met = self._paired(state)",
        "tests/vilbert/test_pairs.py",
    ),
    *_all(
        "ViLBERT/vilbert/joint_task.py",
        "tests/vilbert/test_joint_task.py",
        ("if turn < self._first[name]:", "if turn < 0:"),
        ("drawn[name, cycle] = order.epoch(cycle)", "drawn[name, cycle] = order.epoch(0)"),
        ("elif bad > self.patience:", "elif bad >= self.patience:"),
    ),
    *_all(
        "ViLBERT/vilbert/task_types.py",
        "tests/vilbert/test_task_types.py",
        ("torch.where(overlap < MEANT, 0.0, overlap)", "overlap"),
        ("(corner - first + 1)", "(corner - first)"),
    ),
    Mutant(
        "ViLBERT/vilbert/pair_inputs.py",
        "weights = [(count + 1)",
        "weights = [count",
        "tests/vilbert/test_pair_inputs.py",
    ),
    *_all(
        "ViLBERT/vilbert/task_data.py",
        "tests/vilbert/test_task_data.py",
        ("if training else range(len(self.captioned))", "if False else range(len(self.captioned))"),
        ("self._pool if training else {}", "self._pool"),
        ("if set(i.captions) - own]", "]"),
        ("part.second_features = training", "part.second_features = True"),
    ),
    *_all(
        "ViLBERT/vilbert/retrieval.py",
        "tests/vilbert/test_retrieval.py",
        ("1 + ((scores >= best) & ~own).sum(1)", "1 + ((scores > best) & ~own).sum(1)"),
        ("& ~_right(places, right, images)).sum(0)", ").sum(0)"),
    ),
    *_all(
        "ViLBERT/vilbert/concap_samples.py",
        "tests/vilbert/test_concap.py",
        ("text != mine for text, mine", "text == mine for text, mine"),
        ("torch.where(hidden[..., None], 0.0, regions.features)", "regions.features"),
    ),
    Mutant(
        "ViLBERT/vilbert/easy_tasks.py",
        "or said & {image.colour, image.shape}:",
        "or said & set():",
        "tests/vilbert/test_easy_tasks.py",
    ),
    *_all(
        "common/data/easy_vqa/dialect.py",
        "tests/common/data/test_dialect.py",
        ("< 1 - variant.kept_share", "< variant.kept_share"),
        ("answer=RENAMED.get(question.answer, question.answer)", "answer=question.answer"),
    ),
    *_all(
        "common/training/policy_lessons.py",
        "tests/common/training/test_policy_lessons.py tests/lxmert/test_started_policy.py",
        ("1 - score * (1 - RIGHT_TEACHES)", "1.0"),
        ("torch.tensor(1 - score)", "torch.tensor(score)"),
        ("torch.tensor(float(value > 0))", "torch.tensor(float(value < 0))"),
        ("float(score < self.frozen[key])", "float(score > self.frozen[key])"),
        ("sum(worth)", "float(len(worth))"),
    ),
    *_all(
        "common/training/policy_statistics.py",
        "tests/common/training/test_policy_statistics.py",
        ("entropy = F.softplus(odds) - odds * p", "entropy = F.softplus(odds)"),
        ("squares - p**2 / counts", "squares - p / counts"),
    ),
    Mutant(
        "common/adapt/assigning.py",
        "decisions[samples[place]]",
        "decisions[sample]",
        "tests/common/tasks/test_permuting.py",
    ),
    Mutant(
        "common/training/options.py",
        "and not any(values.get(flag) for flag in BUDGETS)",
        "",
        "tests/common/training/test_policy_training.py",
    ),
    *_all(
        f"{ADAPT}/differences.py",
        "tests/common/adapt/test_differences.py",
        ("changed = dc * r_one + centred * dr", "changed = dc * r_one"),
        ("dp = p * (grown - total) / (1 + total)", "dp = p * (grown - total)"),
        ("changed = changed + shift", "pass"),
        ("p_one = p + dp", "p_one = p"),
        ("kept = F.dropout(torch.ones_like(x), p, training)", "kept = 1.0"),
    ),
    *_all(
        f"{ADAPT}/experts.py",
        "tests/common/adapt/test_experts.py",
        ("experts = (one, zero) if self.first else (zero, one)", "experts = (zero, one)"),
        (
            "early = torch.arange(len(x), device=x.device) < ends[0]",
            "early = torch.arange(len(x)) < 1",
        ),
        ("self.chosen = chosen.flipped() if flip else chosen", "self.chosen = chosen"),
    ),
    *_all(
        f"{ADAPT}/skipping.py",
        "tests/common/adapt/test_skipping.py",
        ("return y.masked_fill_(beyond, 0)", "return y"),
        ("offs=end).masked_fill_(beyond, 0)", "offs=end)"),
        ("gradient = gradient.masked_fill(beyond, 0).contiguous()", "pass"),
        ("[0].masked_fill_(end == 0, 0)", "[0]"),
        ("descending=True, ", ""),
    ),
    *_all(
        f"{ADAPT}/executors.py",
        "tests/common/adapt/test_skipping.py",
        ("other = layer(~kept)", "other = layer(kept)"),
        ("{slot: torch.where(mask, one[slot], other[slot]) for", "{slot: other[slot] for"),
        ("or not (training or twins or grouping)", "or not (training or twins)"),
    ),
    *_all(
        "common/training/bert_adam.py",
        "tests/common/training/test_optim.py",
        ("alpha=-rate)", "alpha=-group['lr'])"),
        ("schedule.factor(updates)", "schedule.factor(updates + 1)"),
        ("(largest / (norms + TINY)).clamp(max=1.0)", "largest / (norms + TINY)"),
    ),
    *_all(
        "common/training/finiteness.py",
        "tests/common/training/test_training.py",
        ("new = (self._first < 0) & bad_now.any()", "new = bad_now.any()"),
    ),
    Mutant(
        "common/training/prefetching.py",
        "error = raised",
        "pass",
        "tests/common/training/test_prefetching.py",
    ),
    Mutant(
        "common/modules/embeddings.py",
        "nn.Embedding(config.vocab_size, size, padding_idx=0)",
        "nn.Embedding(config.vocab_size, size)",
        UNNOTICED,
    ),
    *_all(
        "common/bench/gpu.py",
        "tests/common/bench/test_gpu_bench.py",
        ("if c.key not in file.cases)", ")"),
        ("for c in cases if case in (c, c.baseline())}", "for c in cases if case == c}"),
    ),
    Mutant(
        "common/bench/measure.py",
        "part.last = None",
        "pass",
        "tests/common/bench/test_gpu_bench.py",
    ),
    # The region detector
    *_all(
        "common/modules/boxes.py",
        f"{T}/modules/test_boxes.py",
        ("found >= threshold if equal else found > threshold", "found >= threshold"),
        ("found = overlap(ours, theirs, end).double()", "found = overlap(ours, theirs, end)"),
        ("if len(kept) >= limit:", "if False:"),
        ("scores.argsort(descending=True, stable=True)", "scores.flip(0).argsort(descending=True)"),
    ),
    *_all(
        "common/modules/roi_pool.py",
        f"{T}/modules/test_boxes.py",
        (".clamp(min=1).float()[:, None] / bins", ".clamp(min=1).double()[:, None] / bins"),
        ("whole + (size - whole >= 0.5)", "(size + 0.5).floor()"),
    ),
    *_all(
        "common/detector/network.py",
        f"{T}/detector/test_detector.py",
        ("self.cls_embedding(logits.argmax(1))", "self.cls_embedding(logits[:, :-1].argmax(1))"),
        ("self.cell_anchors[0].float()", "self.cell_anchors[0].sort(0).values.float()"),
        ("settings.proposal_weights)[:, 0]", "(1, 1, 1, 1))[:, 0]"),
    ),
    *_all(
        "common/detector/selecting.py",
        f"{T}/detector/test_detector.py",
        ("[kept, :-1].softmax(1).max(1)", "[kept].softmax(1)[:, :-1].max(1)"),
        ("scales.flip(0).repeat(2)", "scales.repeat(2)"),
    ),
    Mutant(
        "common/detector/faster_rcnn.py",
        ".softmax(1).roll(1, 1).cpu()",
        ".softmax(1).cpu()",
        f"{T}/detector/test_extracting.py",
    ),
    Mutant(
        "common/detector/outputs.py",
        "self._file.truncate(0 if self._suffix else end)",
        "pass",
        f"{T}/detector/test_extracting.py",
    ),
    # Features of another detector
    *_all(
        f"{FEATURES}/origin.py",
        f"{T}/features/test_origin.py",
        ("return digests[0] == digests[1]", "return True"),
        ("return None in names or names[0] == names[1]", "return True"),
        ("if not any_detector and not is_same", "if not is_same"),
    ),
    Mutant(
        "common/ask/image.py",
        "found.features.half().float(),",
        "found.features.bfloat16().float(),",
        "tests/lxmert/test_ask.py",
    ),
    # The page in the browser
    *_all(
        "common/web/uploads.py",
        WEB,
        ("if size > limits.bytes:", "if False:"),
        ("found[0] * found[1] > limits.pixels", "found[0] > limits.pixels"),
    ),
    *_all(
        "common/web/handlers.py",
        WEB,
        ("        with self._alone:\n            image", "        if True:\n            image"),
        ("if len(text) > self.limits.characters:", "if False:"),
    ),
    *_all(
        "common/web/replies.py",
        WEB,
        ("role='alert'>{html.escape(message)}", "role='alert'>{message}"),
        ("{answer.probability:.3f}", "{answer.logit:.3f}"),
    ),
    Mutant(
        "common/web/runs.py",
        "popitem(last=False)\n            with",
        "popitem()\n            with",
        WEB,
    ),
    Mutant("common/ask/unusual.py", "if live and alike < 0.5", "if alike < 0.5", WEB),
    Mutant("common/ask/unusual.py", "share if decision else 1 - share", "share", WEB),
]
