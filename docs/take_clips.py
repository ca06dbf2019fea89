"""The README's clips: ``python docs/take_clips.py`` walks the packaged weights through gallery worlds and writes docs/clip-*.webp."""

from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel import WorldModel

WALKS = {
    "red canyon": ("left*40 right*40 w*40 .*8",),
    "snowy village": ("right*72 .*4 left*72 .*8",),
    "sandstone palace": ("w*32 right*28 left*28 s*32",),
    "autumn village": (
        "right*16",
        "An autumn village on a starry night with a teal church, a purple windmill and a blue river.",
        "left*16 .*16 d*8 a*8 .*12",
    ),
}
"""Scripts, and prompts that hold from there on (they end with a full stop)."""


def main() -> None:
    model = WorldModel.from_pretrained("tiny")
    places = {place.name: place for place in model.gallery}
    for name, parts in WALKS.items():
        world = model.start(places[name].image_path, prompt=places[name].prompt, seed=0)
        frames = [world.first_frame[None]]
        for part in parts:
            if part.endswith("."):
                world.prompt = part
            else:
                frames += [chunk.frames for chunk in world.stream(part)]
        pictures = [Image.fromarray(f) for f in np.concatenate(frames)]
        path = Path(__file__).parent / f"clip-{name.replace(' ', '-')}.webp"
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=1000 // model.fps, loop=0, quality=70, method=6)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
