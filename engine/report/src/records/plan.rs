//! `plan.json`: the prediction of `plan --json` for the run. The user puts it there; only the values that a report
//! compares are read.

use super::settings::layout;
use super::timeline::Timeline;
use engine::config::Config;
use engine::layout::mesh::Mesh;
use engine::model::flops;
use serde::Deserialize;
use serde_json::{Map, Value};

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Plan {
    pub ranks: usize,
    pub tensor: usize,
    pub pipeline: usize,
    pub data: usize,
    pub cluster: String,
    /// The settings of the planned step, as [`super::settings::settings`] writes them, and the number of parameters of
    /// its model. Older plans have neither.
    pub settings: Option<String>,
    pub parameters: Option<u64>,
    /// `None` for a cluster without measured speeds.
    pub step: Option<PlannedStep>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct PlannedStep {
    pub seconds: f64,
    pub tokens_per_s_per_gpu: f64,
    /// Seconds by the name of their [`engine::time::TimeCategory`].
    pub shares: Map<String, Value>,
    pub timeline: Option<Timeline>,
}

impl Plan {
    /// Why it is no plan of the run with this configuration and these settings; `None` where it is one.
    pub fn unfit(&self, config: &Config, mesh: &Mesh, settings: &str) -> Option<String> {
        let differ = |planned: String, ran: String| {
            (planned != ran).then(|| format!("it plans {planned}, but the run has {ran}, so they do not compare"))
        };
        let model = |parameters: u64| format!("a model of {parameters} parameters");
        differ(layout([self.tensor, self.pipeline, self.data]), layout(mesh.layout()))
            .or_else(|| differ(model(self.parameters?), model(flops::parameters(&config.model))))
            .or_else(|| differ(self.settings.clone()?, settings.into()))
    }
}
