"""From files and messages to what the model reads (report, section 2.2): container, video, prompt, processor."""
