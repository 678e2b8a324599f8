"""From a video file to frames: envelope (one whole file?), container (its index), ranges (what is decoded), reading,
frames (upright, sized)."""

from minikeye.inputs.video.reading import (
    Video,
    VideoInfo,
    VideoPlan,
    decode_video,
    plan_frames,
    plan_span,
    plan_video,
    probe,
    read_video,
)

__all__ = [
    "Video",
    "VideoInfo",
    "VideoPlan",
    "decode_video",
    "plan_frames",
    "plan_span",
    "plan_video",
    "probe",
    "read_video",
]
