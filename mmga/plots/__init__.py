"""Plots, each a function that returns a matplotlib `Figure`; `save` writes one.

    report = mmga.evaluate(query, gallery, verification=True)
    mmga.plots.save(mmga.plots.roc(report), "roc.pdf")

Importing this loads no matplotlib, which comes with the extra `train`.
"""

from mmga.plots.by_camera import CameraPairs as CameraPairs
from mmga.plots.by_camera import camera_pairs as camera_pairs
from mmga.plots.by_camera import cameras as cameras
from mmga.plots.curves import cmc as cmc
from mmga.plots.curves import det as det
from mmga.plots.curves import distances as distances
from mmga.plots.curves import roc as roc
from mmga.plots.embedding import embedding_map as embedding_map
from mmga.plots.lists import FolderPictures as FolderPictures
from mmga.plots.lists import RankedList as RankedList
from mmga.plots.lists import easiest as easiest
from mmga.plots.lists import hardest as hardest
from mmga.plots.lists import rank_queries as rank_queries
from mmga.plots.lists import ranked_lists as ranked_lists
from mmga.plots.sheets import Hit as Hit
from mmga.plots.sheets import attention_sheet as attention_sheet
from mmga.plots.sheets import mask_sheet as mask_sheet
from mmga.plots.sheets import ranked_sheet as ranked_sheet
from mmga.plots.style import COLUMN as COLUMN
from mmga.plots.style import PAGE as PAGE
from mmga.plots.style import save as save
from mmga.plots.training import read_metrics as read_metrics
from mmga.plots.training import training_curves as training_curves
