"""Draw figures of models, images and calibration."""
