"""The ablation: do body-part masks help against pose, misalignment, occlusion and clutter?"""
