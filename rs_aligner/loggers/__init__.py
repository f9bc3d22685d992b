"""Where a run's figures go besides `metrics.jsonl`: TensorBoard, W&B, trackio, MLflow. A file each."""
