"""What measured retrainings say of others: a model of cost, with intervals."""

from resque_ext.cost_model.model import CostModel
from resque_ext.cost_model.scaling import Prediction
from resque_ext.cost_model.transfer import leave_one_kind_out

__all__ = ["CostModel", "Prediction", "leave_one_kind_out"]
