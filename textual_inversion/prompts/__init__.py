"""From the text of a prompt to 75-token chunks, and from templates and captions to prompts."""
