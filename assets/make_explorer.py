"""Make assets/explorer/: two pages of the frame explorer, which need no Python to be looked at.

Run: python assets/make_explorer.py
"""

from pathlib import Path

from minikeye import KeyeVL, Processor
from minikeye.explore import FrameSelection
from minikeye.explore.ask import ask
from minikeye.files import CHECKPOINT
from minikeye.inputs.processor import Clip
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.scene import render
from minikeye.minivid.tasks import grounding

HERE = Path(__file__).resolve().parent
CARD_QUESTION = "Which digit is on the card, and at which second?"
FRAMES, NUMBER = 256, 6  # of the synthetic video: one whose two things come one after the other


def card(model: KeyeVL, processor: Processor) -> FrameSelection:
    """The demo: a card in the clip."""
    clip = HERE / "clips" / "big_buck_bunny.mp4"
    return ask(model, processor, clip, CARD_QUESTION, insert_card=(7, 13.0)).selection


def thing(model: KeyeVL, processor: Processor) -> FrameSelection:
    """256 frames, of whose tokens a query reads a tenth; two things in them, and one is asked for."""
    videos = make_videos(seed=3, indices=[NUMBER], frames=FRAMES, split="test", dt=0.5)
    asked = [event for event in videos.events[0] if event.kind == "thing"][1]
    pictures = render(videos.spec, 56, 84)[0]
    video = {"type": "video", "video": Clip(pictures, videos.seconds[0].tolist())}
    question = grounding(asked).question
    inputs = processor([{"role": "user", "content": [video, {"type": "text", "text": question}]}])
    out = model.generate(inputs, max_new_tokens=32, stop_ids=processor.stop_ids, record=True)
    labels = [processor.tokenizer.decode([n], skip_special=False) for n in out.row()]
    return FrameSelection.from_record(
        out.record,
        inputs["frames"][0],
        thumbnails=pictures,
        truth=range(asked.first, asked.stop),
        labels=labels,
        subject=f"the {asked.name}",
        question=question,
        answer=processor.tokenizer.decode(out.row()),
    )


if __name__ == "__main__":
    (HERE / "explorer").mkdir(exist_ok=True)
    both = KeyeVL.from_pretrained(CHECKPOINT).eval(), Processor(CHECKPOINT)
    for make in (card, thing):
        selection, page = make(*both), HERE / "explorer" / f"{make.__name__}.html"
        selection.to_html(page)
        print(f"{page.relative_to(HERE)}: {page.stat().st_size:,} bytes; {selection.sentence()}")
