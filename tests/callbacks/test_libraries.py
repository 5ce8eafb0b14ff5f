"""The callbacks in real training runs of transformers and Lightning."""

import pytest
import torch
from helpers import optional
from torch import nn

pytestmark = pytest.mark.full
WORDS, LENGTH, CLASSES = 40, 12, 4


def sentences(seed, rows):
    """Random words, of which a third belong to the class: ids [rows, LENGTH] and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    ids = torch.randint(CLASSES, WORDS, (rows, LENGTH), generator=generator)
    own = torch.rand(rows, LENGTH, generator=generator) < 1 / 3
    return torch.where(own, labels[:, None], ids), labels


def as_batches(side, size=16):
    ids, labels = side
    return [
        {"input_ids": x, "attention_mask": torch.ones_like(x), "labels": y}
        for x, y in zip(ids.split(size), labels.split(size), strict=True)
    ]


def bert():
    transformers = optional.module("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=WORDS,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=LENGTH,
        num_labels=CLASSES,
        hidden_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


class Rows(torch.utils.data.Dataset):
    def __init__(self, side):
        self.ids, self.labels = side

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return {"input_ids": self.ids[i], "labels": self.labels[i]}


def trainer_of(folder, model, callbacks, epochs=6, metric="accuracy", save="no", **more):
    transformers = optional.module("transformers")
    optional.module("accelerate")
    return transformers.Trainer(
        model,
        transformers.TrainingArguments(
            str(folder),
            per_device_train_batch_size=16,
            num_train_epochs=epochs,
            learning_rate=3e-3,
            lr_scheduler_type="constant",
            eval_strategy="epoch",
            save_strategy=save,
            report_to=[],
            use_cpu=True,
            seed=1,
            disable_tqdm=True,
            **more,
        ),
        train_dataset=Rows(sentences(1, 320)),
        eval_dataset=Rows(sentences(2, 160)),
        compute_metrics=lambda p: {metric: float((p.predictions.argmax(1) == p.label_ids).mean())},
        callbacks=callbacks,
    )


def options_of_begin(tracker, monkeypatch):
    """Filled once training begins."""
    begin, found = tracker.begin, {}

    def noted(*arguments, **options):
        found.update(options)
        return begin(*arguments, **options)

    monkeypatch.setattr(tracker, "begin", noted)
    return found


def test_a_trainer_with_the_callback_trains_as_without(tmp_path):
    optional.module("transformers")
    from resque_ext.callbacks.huggingface import ForecastCallback

    train, test = as_batches(sentences(1, 320)), as_batches(sentences(2, 160))
    told = []
    callback = ForecastCallback(train, test, 0.9, report=lambda n, step: told.append(step))
    model, alone = bert(), bert()
    trainer_of(tmp_path, model, [callback]).train()
    trainer = trainer_of(tmp_path, alone, [])
    trainer.train()
    assert all(map(torch.equal, model.parameters(), alone.parameters()))
    accuracies = [x["eval_accuracy"] for x in trainer.state.log_history if "eval_accuracy" in x]
    assert [each.accuracy for each in callback.tracker.outlooks] == accuracies
    first = next(20 * (i + 1) for i, found in enumerate(accuracies) if found >= 0.9)
    found = callback.tracker.summary()
    assert (found["steps"], found["reached"]) == (first, True)
    assert callback.tracker.forecast.steps_per_epoch == 20
    assert told == [0, 20, 40, 60, 80, 100, 120, 120]


def test_a_trainer_stops_at_the_target(tmp_path):
    optional.module("transformers")
    from resque_ext.callbacks.huggingface import ForecastCallback

    train, test = as_batches(sentences(1, 320)), as_batches(sentences(2, 160))
    callback = ForecastCallback(train, test, 0.9, stop_at_target=True, steps=(16,))
    trainer = trainer_of(tmp_path, bert(), [callback])
    trainer.train()
    assert trainer.state.global_step == callback.tracker.summary()["steps"] < 120


@pytest.mark.parametrize("limit", [{}, {"max_steps": 30}])
def test_a_step_of_a_trainer_is_of_several_batches(tmp_path, limit):
    """320 rows, 16 a batch, four batches a step: an epoch has five steps."""
    optional.module("transformers")
    from resque_ext.callbacks.huggingface import ForecastCallback

    train, test = as_batches(sentences(1, 320)), as_batches(sentences(2, 160))
    callback = ForecastCallback(train, test, 1.0, steps=())
    trainer_of(tmp_path, bert(), [callback], gradient_accumulation_steps=4, **limit).train()
    found = callback.tracker.outlooks
    assert [(each.step, each.epoch) for each in found] == [(5 * i, i) for i in range(1, 7)]
    open_ = [each for each in found if each.epochs is not None and not each.reached]
    assert open_
    for each in open_:
        assert each.steps.value / each.epochs.value == pytest.approx(5)


def test_a_trainer_without_the_metric_is_refused(tmp_path):
    optional.module("transformers")
    from resque_ext.callbacks.huggingface import ForecastCallback

    train, test = as_batches(sentences(1, 320)), as_batches(sentences(2, 160))
    trainer = trainer_of(
        tmp_path, bert(), [ForecastCallback(train, test, 0.9, steps=())], metric="other"
    )
    with pytest.raises(ValueError, match="metric: expected 'eval_accuracy' in the evaluation"):
        trainer.train()


def vectors(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(CLASSES, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(rows) % CLASSES
    return means[labels] + 0.7 * torch.randn(rows, 8, generator=generator), labels


def lightning_run(folder, callbacks, epochs=6, resume=None, **more):
    """The module and its trainer after training."""
    lightning = optional.module("lightning").pytorch

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, CLASSES))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch, _):
            scores = self(batch[0])
            self.log("val_loss", nn.functional.cross_entropy(scores, batch[1]))
            self.log("val_accuracy", (scores.argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), 3e-3)

    torch.manual_seed(0)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=callbacks,
        **more,
    )
    loaders = [
        torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(*vectors(seed, rows)), 20, shuffle=seed == 1
        )
        for seed, rows in ((1, 400), (2, 100))
    ]
    torch.manual_seed(1)
    trainer.fit(module, *loaders, ckpt_path=resume)
    return module, trainer


def pairs(side, size=20):
    return list(zip(*(part.split(size) for part in side), strict=True))


@pytest.mark.parametrize("network", [None, lambda module: module.net])
def test_lightning_with_the_callback_trains_as_without(tmp_path, network):
    optional.module("lightning")
    from resque_ext.callbacks.lightning import ForecastCallback

    callback = ForecastCallback(
        pairs(vectors(1, 400)), pairs(vectors(2, 100)), 0.9, network=network
    )
    module, _ = lightning_run(tmp_path, [callback])
    alone, _ = lightning_run(tmp_path, [])
    assert all(map(torch.equal, module.parameters(), alone.parameters()))
    tracker = callback.tracker
    assert [each.step for each in tracker.outlooks] == [20, 40, 60, 80, 100, 120]
    x, y = vectors(2, 100)
    accuracy = (module.net(x).argmax(1) == y).float().mean().item()
    assert tracker.outlooks[-1].accuracy == pytest.approx(accuracy)
    first = next(each.step for each in tracker.outlooks if each.accuracy >= 0.9)
    assert (tracker.summary()["steps"], tracker.summary()["reached"]) == (first, True)
    assert tracker.forecast.steps_per_epoch == 20


def test_lightning_stops_at_the_target(tmp_path):
    optional.module("lightning")
    from resque_ext.callbacks.lightning import ForecastCallback

    callback = ForecastCallback(
        pairs(vectors(1, 400)), pairs(vectors(2, 100)), 0.9, stop_at_target=True, steps=()
    )
    _, trainer = lightning_run(tmp_path, [callback], epochs=30)
    assert trainer.global_step == callback.tracker.summary()["steps"] < 600


@pytest.mark.parametrize(("share", "every"), [(1.0, 5), (0.2, 1)])
def test_a_step_of_lightning_is_of_several_batches(tmp_path, monkeypatch, share, every):
    """20 batches, four a step: an epoch has five steps; a fifth of it is one."""
    optional.module("lightning")
    from resque_ext.callbacks.lightning import ForecastCallback

    callback = ForecastCallback(pairs(vectors(1, 400)), pairs(vectors(2, 100)), 1.0, steps=())
    given = options_of_begin(callback.tracker, monkeypatch)
    more = {"accumulate_grad_batches": 4, "val_check_interval": share}
    lightning_run(tmp_path, [callback], **more)
    assert (given["steps_per_epoch"], given["check_every"]) == (5, every)
    found = callback.tracker.outlooks
    ends = [(each.step, each.epoch) for each in found if each.step % 5 == 0]
    assert ends == [(5 * i, i) for i in range(1, 7)]


def test_a_resumed_lightning_run_says_where_it_is(tmp_path, monkeypatch):
    optional.module("lightning")
    from resque_ext.callbacks.lightning import ForecastCallback

    _, trainer = lightning_run(tmp_path, [], epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    callback = ForecastCallback(pairs(vectors(1, 400)), pairs(vectors(2, 100)), 1.0, steps=())
    given = options_of_begin(callback.tracker, monkeypatch)
    lightning_run(tmp_path, [callback], epochs=4, resume=str(tmp_path / "two.ckpt"))
    assert given["step"] == 40
    assert [each.step for each in callback.tracker.outlooks] == [60, 80]


def test_a_resumed_trainer_says_where_it_is(tmp_path, monkeypatch):
    optional.module("transformers")
    from resque_ext.callbacks.huggingface import ForecastCallback

    trainer_of(tmp_path, bert(), [], epochs=2, save="epoch").train()
    train, test = as_batches(sentences(1, 320)), as_batches(sentences(2, 160))
    callback = ForecastCallback(train, test, 1.0, steps=())
    given = options_of_begin(callback.tracker, monkeypatch)
    resumed = trainer_of(tmp_path, bert(), [callback], epochs=4)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-40"))
    assert given["step"] == 40
    assert [each.step for each in callback.tracker.outlooks] == [60, 80]
