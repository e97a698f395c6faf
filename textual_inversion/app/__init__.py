"""The application layer without gradio: the engine, the job, the actions, and the port that hosts implement."""
