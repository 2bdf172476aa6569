"""Explorers: controls beside a figure that follows them in JupyterLab; the figure of their first values elsewhere.

Each function returns an Explorer, which shows itself as a cell's last line. Under papermill (see execute.headless) no
control is made, and the picture is an ordinary output, which a page and a saved notebook keep.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
from collections.abc import Callable, Sequence
from functools import partial

import cv2
import ipywidgets as widgets
import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from soco_lib import BookError, boxes, locate
from soco_lib.book.execute import headless
from soco_lib.config import Pretrain, View
from soco_lib.data.proposals import GENERATORS, MODES, ProposalConfig, dropped, paper_filter, propose, unfiltered
from soco_lib.data.sources import ImageSource, open_source
from soco_lib.dataset import choose
from soco_lib.encoder import assign_levels
from soco_lib.features import neighbours, probe
from soco_lib.fields import require
from soco_lib.figures import detections as pictures
from soco_lib.figures import plots
from soco_lib.runs.folder import Run
from soco_lib.transfer import predict, predictions
from soco_lib.views import ViewSample, make_views, resize

# Drawn again when a slider is let go or a key is pressed, not at each value that it passes.
_later = {"continuous_update": False}
_slider = partial(partial, widgets.IntSlider, **_later)
_share = partial(partial, widgets.FloatSlider, min=0, max=1, step=0.05, readout_format=".2f", **_later)
_range = partial(partial, widgets.FloatRangeSlider, min=0, max=1, step=0.02, readout_format=".2f", **_later)
_whole = partial(partial, widgets.BoundedIntText, min=0, max=10**6)
_choice = partial(partial, widgets.Dropdown)
_switch = partial(partial, widgets.Checkbox, indent=False)


class Explorer:
    """Named controls, and what `draw(name=value, ...)` makes of their values: a text and `pictures` figures.

    controls: name -> a widget's class with its arguments; counter: the one that the button "next" counts up. live: make
    the controls (None: unless headless). A BookError of `draw` becomes the text, without pictures.
    """

    def __init__(self, draw: Callable[..., tuple[str, *tuple[Figure, ...]]], controls: dict[str, partial],
                 counter: str = "", pictures: int = 1, live: bool | None = None):  # fmt: skip
        self.draw, self.pictures, self.shown = draw, pictures, []
        self.values = {name: made.keywords["value"] for name, made in controls.items()}
        self.controls: dict[str, widgets.Widget] = {}
        self.buttons: list[widgets.Button] = []
        if headless() if live is None else not live:
            return
        self.controls = {name: made(description=name.replace("_", " ")) for name, made in controls.items()}
        for control in self.controls.values():
            control.observe(self._changed, "value")
        if counter:
            self.buttons = [widgets.Button(description=f"next {counter}")]
            self.buttons[0].on_click(lambda _: setattr(self.controls[counter], "value", self.values[counter] + 1))

    def _changed(self, _) -> None:
        self.values = {name: control.value for name, control in self.controls.items()}
        for handle, output in zip(self.shown, self.outputs()):
            handle.update(output, raw=True)

    def outputs(self) -> list[dict]:
        """The text and the pictures for the controls' values, as MIME bundles."""
        before = {*plt.get_fignums()}
        try:
            text, *figures = self.draw(**self.values)
            return [{"text/plain": text}, *map(_png, figures)]
        except BookError as error:
            return [{"text/plain": str(error)}] + [_NOTHING] * self.pictures
        finally:  # what an error leaves half drawn, too
            for number in {*plt.get_fignums()} - before:
                plt.close(number)

    def _ipython_display_(self) -> None:
        if self.controls:
            wrapped = widgets.Layout(flex_flow="row wrap")
            display(widgets.Box([*self.controls.values(), *self.buttons], layout=wrapped))
        self.shown = [display(output, raw=True, display_id=True) for output in self.outputs()]


#: A picture's place when there is none.
_NOTHING = {"text/plain": ""}


def _png(figure: Figure) -> dict:
    canvas = FigureCanvasAgg(figure)
    figure.set_dpi(100)
    figure.get_layout_engine().set(h_pad=0.1)
    canvas.draw()  # once, where savefig draws twice
    pixels = cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR)
    return {"image/png": base64.b64encode(cv2.imencode(".png", pixels)[1]).decode()} | _NOTHING


def _told(build: Callable[..., Explorer]) -> Callable[..., Explorer]:
    """An Explorer whose data cannot be opened shows why."""

    def refuse(reason: str):
        raise BookError(reason)

    @functools.wraps(build)
    def built(*given, **named) -> Explorer:
        try:
            return build(*given, **named)
        except BookError as error:
            return Explorer(partial(refuse, str(error)), {}, pictures=0)

    return built


@_told
def proposals(source: ImageSource, config: ProposalConfig = ProposalConfig(), image: int = 0, k: int = 4,
              live: bool | None = None) -> Explorer:  # fmt: skip
    """Proposals of an image of `source`: the K of a step, those that the paper's filter keeps and those that it drops,
    by reason; of labelled images also each object's best box. `config`, `image` (its number) and `k` come first.
    """

    @functools.lru_cache(64)
    def found(image: int, config: ProposalConfig) -> tuple[np.ndarray, np.ndarray]:
        pixels = source.load(image)
        return pixels, unfiltered(pixels, source.keys[image], config)

    def draw(image, generator, strategy, search_size, K, seed):
        own = seed if generator == "random" else 0  # no other generator has one: nothing is searched again
        made = dataclasses.replace(config, generator=generator, mode=strategy, search_side=search_size, seed=own)
        pixels, every = found(image, made)
        size = pixels.shape[1::-1]
        kept, rule = (every, "whole") if generator == "whole" else paper_filter(every, *size)
        few = kept[choose(np.random.default_rng((seed, image)), len(kept), K)]
        judged = every[:0] if generator == "whole" else every
        why = {reason: judged[which] for reason, which in dropped(judged, *size).items()}
        colours = dict(zip(why, plots.COLOURS))
        out = {"colours": [colours[reason] for reason, found in why.items() for _ in found], "width": 1}
        marks = {0: {"labels": range(1, K + 1)}, 1: {"width": 1}, 2: out}
        panels = {f"{K} that a step may draw": few, f"{len(kept)} kept": kept}
        panels[f"{len(out['colours'])} dropped"] = np.concatenate([*why.values()])
        text = f"{source.keys[image]}, {size[0]} x {size[1]} pixels: {len(every)} boxes, {len(kept)} kept"
        text += f" by the rule {rule!r}: none is within the paper's limits" * (rule not in ("paper", generator))
        if source.classes:
            objects, labels = source.annotations(image)
            overlap, names = boxes.iou(objects, kept), [source.classes[label] for label in labels]
            best = [f"{value:.2f}" for value in overlap.max(1)]
            paired = ["white"] * len(best) + [plots.COLOURS[i % 7] for i in range(len(best))]
            marks[3] = {"colours": paired, "labels": [""] * len(best) + best}
            panels["objects (white), best box and its IoU"] = np.concatenate([objects, kept[overlap.argmax(1)]])
            text += "; best IoU: " + (", ".join(map(" ".join, zip(names, best))) or "no object is labelled")
        figure = plots.image_grid([pixels] * len(panels), [*panels.values()], [*panels], len(panels), marks)
        legend = [Patch(color=colours[reason], label=f"{reason}: {len(found)}") for reason, found in why.items()]
        figure.axes[2].legend(handles=legend, fontsize=6, loc="lower center", ncols=2)
        return text, figure

    controls = {
        "image": _slider(value=image, max=len(source) - 1),
        "generator": _choice(value=config.generator, options=GENERATORS),
        "strategy": _choice(value=config.mode, options=MODES),
        "search_size": _slider(value=config.search_side, min=0, max=512, step=32),
        "K": _slider(value=k, min=1, max=16),
        "seed": _whole(value=config.seed),
    }
    return Explorer(draw, controls, live=live)


@_told
def views(cfg: Pretrain, source: ImageSource, find: Callable | None = None, images: Sequence[int] | None = None,
          image: int = 0, live: bool | None = None) -> Explorer:  # fmt: skip
    """Views of an image as a pretraining with `cfg` draws them, and with other crops, jitter and views.

    find(number of an image, its (width, height)): its proposals (n, 4), such as ProposalViews.boxes; None: they are
    found here. images: the numbers of those that are offered (None: all); `image`, a place among them, comes first.
    """
    images = range(len(source)) if images is None else images
    # V4's side is the setting's, or in proportion to SoCo*'s 192 of 224, as the recipes have it.
    v4 = cfg.views[2].size if len(cfg.views) > 2 else round(cfg.size * 192 / 224 / 16) * 16

    @functools.lru_cache(64)
    def load(number: int) -> tuple[np.ndarray, np.ndarray]:
        pixels = source.load(number)
        if find is not None:
            return pixels, find(number, pixels.shape[1::-1])
        return pixels, propose(pixels, source.keys[number], ProposalConfig())[0]

    def draw(image, draw, seed, crop_area, jitter, V3_px, V4, photometry):
        made = [dataclasses.replace(cfg.views[0], scale=crop_area)]
        made += [View(V3_px, "V2")] if V3_px else []
        made += [View(v4, scale=crop_area)] if V4 else []
        now = dataclasses.replace(cfg, jitter=jitter, views=tuple(made))
        rng, (pixels, found) = np.random.default_rng((seed, draw)), load(int(images[image]))
        chosen = found[choose(rng, len(found), cfg.k)]
        made = make_views(rng, pixels, chosen, now)
        made = made if photometry else [_uncoloured(pixels, view, cfg.size) for view in made]
        levels = [assign_levels(view.boxes, now) for view in made]
        level = lambda k: " ".join(f"P{at[k]}" if view.valid[k] else "dropped" for view, at in zip(made, levels))
        text = "; ".join(f"box {k + 1}: {level(k)}" for k in range(cfg.k))
        text = f"{source.keys[images[image]]}, levels in V1 to V{len(made)}: {text}"
        return text, plots.views_figure(pixels, chosen, [made], [levels])

    controls = {
        "image": _slider(value=image, max=len(images) - 1),
        "draw": _whole(value=0),
        "seed": _whole(value=cfg.seed),
        "crop_area": _range(value=cfg.views[0].scale, min=0.04),
        "jitter": _share(value=cfg.jitter),
        "V3_px": _slider(value=next((v.size for v in cfg.views if v.source == "V2"), 0), max=cfg.size, step=16),
        "V4": _switch(value=len(cfg.views) > 2),
        "photometry": _switch(value=True),
    }
    return Explorer(draw, controls, counter="draw", live=live)


def _uncoloured(image: np.ndarray, view: ViewSample, side: int) -> ViewSample:
    """The same view before its photometry: its crop of V1, an image of `side` pixels, resized and flipped."""
    x1, y1, x2, y2 = view.crop
    pixels = resize(resize(image, side)[y1:y2, x1:x2], view.image.shape[0])
    return dataclasses.replace(view, image=cv2.flip(pixels, 1) if view.flip else pixels)


@_told
def network(runs: Sequence[str], data: str, images: int = 150, live: bool | None = None) -> Explorer:
    """What random weights and the weights of one or two pretrainings (run folders) take for alike: a box of one of the
    first `images` of the labelled set `data` beside boxes of its size all over the image, and beside all objects.
    """
    require(len(runs) > 0, "no pretraining to look through: make quickstart makes one")
    source, networks, found = open_source(data), {}, {}
    chosen = np.arange(min(images, len(source)))
    trained = [(folder, *probe.trained_encoder(Run.read(locate(folder)))) for folder in runs]
    cfg = trained[0][1]
    for folder, other, _, _ in trained:
        sizes = f"{folder} sees images of {other.size} px, {runs[0]} of {cfg.size}"
        require(other.size == cfg.size, f"{sizes}: choose runs of one size")
    named = {f"{locate(folder).name}, {step} steps": (own, encoder) for folder, own, encoder, step in trained}
    for name, (own, encoder) in {"random weights": (cfg, probe.fresh(cfg)), **named}.items():
        own, encoder = probe.pooled(own, encoder)
        networks[name] = probe.measured(encoder, own, source, chosen)
        found[name] = neighbours.objects(encoder, own, source, chosen)
    # Those that can be read, in the order of Objects.images.
    seen = [(source.keys[i], *part) for i in chosen for part in probe.batches(source, cfg, [i])]

    def draw(image, object, x, y):
        key, view, labelled, labels = seen[image]
        box = torch.tensor([x[0], y[0], x[1], y[1]]) * cfg.size
        if object and len(labels):
            box = labelled[0][(object - 1) % len(labels)]
        wide = bool(((box[2:] - box[:2]) >= probe.SMALLEST).all())
        require(wide, f"the box has sides below {probe.SMALLEST:g} of the view's {cfg.size} pixels: widen x and y")
        overlap = boxes.iou(box[None], labelled[0])[0]
        label = labels[overlap.argmax()] if overlap.max(initial=0) >= 0.5 else -1
        with_box = lambda name: neighbours.with_box(found[name], networks[name], view[0], box, label, image)
        last = len(found["random weights"].labels)
        nearest = neighbours.draw_nearest({name: with_box(name) for name in networks}, [last], source.classes)
        what = source.classes[label] if label >= 0 else "no labelled object"
        sides = " ".join(f"{side:.0f}" for side in box)
        text = f"{key}: box {sides} of the view's {cfg.size} x {cfg.size} pixels, {what}"
        return text, neighbours.draw_maps(networks, [(view[0], box)]), nearest

    controls = {
        "image": _slider(value=0, max=len(seen) - 1),
        "object": _whole(value=1),
        "x": _range(value=(0.3, 0.7)),
        "y": _range(value=(0.3, 0.7)),
    }
    return Explorer(draw, controls, counter="object", pictures=2, live=live)


@_told
def detections(*folders: str, score: float = 0.3, live: bool | None = None) -> Explorer:
    """Detections of one or two finished transfers on the same test set, or of `make predict`, image by image."""
    read = lambda run: (predict if run.record["kind"] == "predict" else predictions).read(run.folder)
    seen = [read(Run.read(locate(folder))) for folder in folders]
    truth = seen[0].truth
    for other in seen[1:]:
        same = all(truth[part] == other.truth[part] for part in ("images", "categories"))
        require(same, f"{seen[0].run.name} and {other.run.name} have different images: choose runs of one test set")
    hit = {row["image_id"] for row in truth["annotations"] or seen[0].detections}
    first = next((i for i, image in enumerate(truth["images"]) if image["id"] in hit), 0)

    def draw(image, score, only, only_errors=False):
        at = truth["images"][image]
        where = f"{at['file_name']}, {at['width']} x {at['height']} pixels; detections scored {score:.2f} or more"
        return where, pictures.draw_image(seen, at, score, None if only == "" else only, only_errors)

    names = sorted((name, identity) for identity, name in seen[0].classes.items())
    controls = {
        "image": _slider(value=first, max=len(truth["images"]) - 1),
        "score": _share(value=score),
        "only": _choice(value="", options=[("all classes", ""), *names]),  # None would be no choice
    }
    if truth["annotations"]:
        controls["only_errors"] = _switch(value=False)
    return Explorer(draw, controls, live=live)
