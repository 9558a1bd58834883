//! Numbers of a run written by hand, whose results are known.

use super::*;
use crate::document::Document;
use crate::records::Found;
use crate::records::jsonl::Lines;
use crate::records::machine::Machine;
use crate::records::memory::{Bytes, Memory, RankMemory};
use crate::records::metrics::{SetRecord, StepRecord};
use crate::records::plan::Plan;
use crate::records::ranks::Sample;
use crate::records::settings::settings;
use crate::records::timeline::Timeline;
use crate::run::Run;
use crate::{markdown, page};
use engine::time::Phase;
use std::collections::BTreeMap;

pub const CONFIG: &str = r#"
[model]
architecture = "llama"
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 4
num_attention_heads = 4
num_key_value_heads = 2
vocab_size = 64
max_position_embeddings = 32
rope_theta = 10000.0
rms_norm_eps = 1e-5

[train]
seq_length = 32
micro_batch_size = 1
global_batch_size = 16
steps = 100

[parallel]
pipeline = 2

[optimizer]
lr = 1e-3

[data]
train = [{ prefix = "none" }]
split = "1,0,0"

[checkpoint]
dir = "none"
"#;

/// A run of two stages and two replicas with steps of 16 x 32 tokens, which take 1 s except for two that take 9 s.
fn run() -> Run {
    let config = engine::config::Config::from_resolved(CONFIG).unwrap();
    let step = |step: u64| {
        let seconds = if step == 1 || step == 5 { 9.0 } else { 1.0 };
        StepRecord {
            step,
            loss: 10.0 - step as f64,
            consumed_samples: 16 * step,
            step_time_s: seconds,
            tokens_per_s: 512.0 / seconds,
            tokens_per_s_per_rank: 128.0 / seconds,
            parts: BTreeMap::from([("validation_s".to_string(), 0.5)]),
            valid_loss: (step == 4).then_some(6.5),
            ..Default::default()
        }
    };
    let mesh = config.mesh(4).unwrap();
    let hosts = ["a", "a", "b", "<b>"].map(String::from).into();
    let machine =
        Machine { version: "0".into(), device: "NVIDIA A100-SXM4-40GB".into(), precision: "bf16".into(), hosts };
    Run {
        dir: "runs/hand".into(),
        name: "hand".into(),
        settings: settings(&config, &mesh),
        mesh,
        config,
        machine: Found::Present(machine),
        steps: Lines { records: (1..=8).map(step).collect(), skipped: vec![9] },
        samples: Lines { records: vec![sample(1, 90.0), sample(4, 1.0), sample(8, 1.0)], skipped: Vec::new() },
        experts: vec![],
        timeline: Found::Absent,
        memory: Found::Absent,
        plan: Found::Absent,
    }
}

/// Ranks 0 and 1 are the first stage; in the second, rank 3 is slower than rank 2.
fn sample(step: u64, seconds: f64) -> Sample {
    Sample {
        step,
        layout: [1, 2, 2],
        seconds: vec![seconds; 4],
        busy: vec![0.5, 0.54, 0.5, 0.6],
        phases: BTreeMap::from([("forward_s".to_string(), vec![0.25, 0.25, 0.5, 0.5])]),
        waits: BTreeMap::from([
            ("activations".to_string(), vec![0.0, 0.0, 0.25, 0.25]),
            ("gradients".to_string(), vec![0.125, 0.125, 0.0, 0.0]),
            ("data".to_string(), vec![0.0, 0.5, 0.0, 0.5]),
            ("world".to_string(), vec![0.0625, 0.0625, 0.1875, 0.1875]),
        ]),
    }
}

#[test]
fn speed_is_that_of_the_median_step() {
    let e = Efficiency::of(&run(), None);
    let Speed { first_step, last_step, steps, step_s, tokens_per_s_per_rank, .. } = e.speed;
    assert_eq!((first_step, last_step, steps, step_s, tokens_per_s_per_rank), (3, 8, 6, 1.0, 128.0));
    assert_eq!((e.peak.tflops, e.formulas.len()), (Some(312.0), 6));
    let model = e.formula("model");
    assert_eq!(model.tflops_per_rank, 128.0 * model.flops_per_token / 1e12);
    assert_eq!(model.mfu, Some(model.tflops_per_rank / 312.0));
    assert_eq!((e.done.tokens, e.done.loss, e.done.valid_loss), (8 * 512, 2.0, Some((4, 6.5))));
    assert_eq!(
        e.notes,
        ["metrics.jsonl: line 9 was skipped; it is no complete record, as a run that is killed may leave one"]
    );
    assert_eq!(speed::median([3.0, 1.0, f64::NAN, 2.0, 9.0]), 2.5);
}

#[test]
fn the_peak_is_that_of_the_flag_then_of_the_configuration_then_of_the_table() {
    let mut run = run();
    run.config.report.peak_tflops = Some(100.0);
    assert_eq!(Peak::of(&run, Some(50.0)).tflops, Some(50.0));
    assert_eq!(Peak::of(&run, None).tflops, Some(100.0));
    run.config.report.peak_tflops = Some(1e-9);
    let notes = Efficiency::of(&run, None).notes;
    assert!(
        notes[1]
            .ends_with("given by `report.peak_tflops` of the configuration: this cannot be the peak of this device"),
        "{notes:?}"
    );
    run.config.report.peak_tflops = None;
    let machine = run.machine.present().unwrap().clone();
    run.machine = Found::Present(Machine { device: "AMD EPYC".into(), ..machine });
    let peak = Peak::of(&run, None);
    assert_eq!(peak.tflops, None);
    let unknown = "there is no MFU, since the peak of \"AMD EPYC\" is unknown: set `report.peak_tflops`";
    assert!(peak.source.starts_with(unknown), "{peak:?}");
    assert!(Efficiency::of(&run, None).formulas.iter().all(|by| by.mfu.is_none()));
    assert_eq!(Efficiency::of(&run, None).setup.worker, "rank");
}

#[test]
fn time_comes_from_the_samples_after_the_warm_up() {
    let time = Efficiency::of(&run(), None).time.unwrap();
    assert_eq!((time.samples, time.first_step, time.step_s), (2, 4, 1.0));
    assert_eq!(time.bubble, Bubble { measured: 0.1875 + 0.0625, tail_s: 0.0625, theory: 1.0 / 9.0 });
    let waits: Vec<_> = time.waits.iter().map(|w| (w.group.as_str(), w.mean_s, w.most_rank)).collect();
    assert_eq!(waits, [("data", 0.25, 1), ("activations", 0.125, 2), ("world", 0.125, 2), ("gradients", 0.0625, 0)]);
    let phase = |phase: Phase| time.phases.iter().find(|time| time.phase == phase).unwrap();
    assert_eq!((phase(Phase::Forward).mean_s, phase(Phase::Validation).mean_s), (0.375, 0.5));
    assert_eq!(phase(Phase::Forward).share, 0.375 / 0.875);
    let [slow] = &time.stragglers[..] else { panic!("{:?}", time.stragglers) };
    assert_eq!((slow.rank, slow.host.as_deref(), slow.busy_s, slow.usual_s), (3, Some("<b>"), 0.6, 0.5));
}

#[test]
fn the_share_of_the_ideal_time_is_the_median_of_the_steps_that_have_it() {
    let mut run = run();
    let ideal = |run: &Run| {
        let page = markdown::write(&Document::of(&Efficiency::of(run, None), run, None));
        (Efficiency::of(run, None).speed.sol, page.contains("ideal time"))
    };
    assert_eq!(ideal(&run), (None, false));
    for (step, sol) in run.steps.records.iter_mut().skip(2).zip([Some(0.5), None, Some(0.7), Some(0.9)]) {
        step.sol = sol;
    }
    assert_eq!(ideal(&run), (Some(0.7), true));
}

#[test]
fn steps_with_other_ranks_are_excluded() {
    let mut run = run();
    run.steps.records.iter_mut().take(3).for_each(|step| step.tokens_per_s_per_rank = step.tokens_per_s / 2.0);
    let e = Efficiency::of(&run, None);
    assert_eq!((e.speed.other_settings, e.speed.first_step), (3, 6));
    assert!(e.notes[1].starts_with("3 steps with other settings than tensor 1, pipeline 2, "), "{:?}", e.notes);
}

/// Another layout of as many ranks.
#[test]
fn steps_with_other_settings_are_excluded() {
    let mut run = run();
    for step in &mut run.steps.records {
        step.settings = if step.step == 4 { "tensor 2".into() } else { run.settings.clone() };
    }
    run.steps.records[3].step_time_s = 0.125;
    let e = Efficiency::of(&run, None);
    assert_eq!((e.speed.other_settings, e.speed.first_step, e.speed.steps), (1, 3, 5));
    assert!(e.notes[1].starts_with("1 step with other settings than tensor 1, pipeline 2, "), "{:?}", e.notes);
    assert!(e.notes[1].ends_with(" is excluded from all speeds"), "{:?}", e.notes);
    assert_eq!(e.speed.step_s, 1.0);
}

#[test]
fn memory_and_plan_are_compared_with_the_measurement() {
    let mut run = run();
    let bytes = |reserved_bytes| {
        let others_bytes = Some(reserved_bytes / 4);
        Bytes { peak_bytes: 0, reserved_bytes, checkpoint_copy_bytes: 7, others_bytes }
    };
    let of_rank = |rank| RankMemory {
        rank,
        host: "a".into(),
        planned: bytes(1 << 30),
        used: bytes((1 << 30) + (rank as u64) * 1024),
    };
    run.memory = Found::Present(Memory { ranks: (0..4).map(of_rank).collect() });
    let plan = r#"{"ranks": 4, "tensor": 1, "pipeline": 2, "data": 2, "cluster": "c", "step": {"seconds": 0.5,
        "tokens_per_s_per_gpu": 256.0, "shares": {"matmul": 0.25, "pipeline bubble": 0.125}}}"#;
    run.plan = Found::Present(serde_json::from_str(plan).unwrap());
    let e = Efficiency::of(&run, None);
    let last = &e.memory.as_ref().unwrap()[3];
    assert_eq!((last.stage, last.planned_bytes, last.used_bytes), (1, 1 << 30, (1 << 30) + 3072));
    let planned = e.plan.as_ref().unwrap();
    assert_eq!((planned.step_s, planned.measured_step_s), (0.5, 1.0));
    let shares: Vec<_> = planned.shares.iter().map(|s| (s.name.as_str(), s.measured_s)).collect();
    assert_eq!(shares, [("matmul", None), ("pipeline bubble", Some(0.25))]);
    let text = markdown::write(&Document::of(&e, &run, None));
    assert!(text.contains("| step time, s | 0.500 | 1.00 | 2.00 |"), "{text}");
    assert!(text.contains("| planned, GiB | used, GiB | used - planned, KiB | "), "{text}");
    assert!(text.contains("| rank 3 (stage 1) | 1.00 | 1.00 | 3.00 | 0.00 |"), "{text}");
    assert!(text.contains("had taken up to 0.25 GiB of a GPU at the end (rank 3); 0.25 GiB were planned"), "{text}");
}

#[test]
fn a_plan_of_something_else_is_not_compared() {
    let run = run();
    let unfit = |settings: &str, parameters: u64, data: usize| {
        let plan = serde_json::json!({
            "ranks": 2 * data, "tensor": 1, "pipeline": 2, "data": data, "cluster": "c", "settings": settings,
            "parameters": parameters, "step": {"seconds": 0.5, "tokens_per_s_per_gpu": 256.0, "shares": {}}
        });
        let plan: Plan = serde_json::from_value(plan).unwrap();
        plan.unfit(&run.config, &run.mesh, &run.settings).unwrap_or_default()
    };
    let parameters = engine::model::flops::parameters(&run.config.model);
    assert_eq!(unfit(&run.settings, parameters, 2), "");
    let model = format!("it plans a model of 7 parameters, but the run has a model of {parameters} parameters, so ");
    assert!(unfit(&run.settings, 7, 2).starts_with(&model), "{}", unfit(&run.settings, 7, 2));
    let settings = format!("it plans batch 8, but the run has {}, so they do not compare", run.settings);
    assert_eq!(unfit("batch 8", parameters, 2), settings);
    let layout = unfit(&run.settings, parameters, 4);
    assert!(layout.starts_with("it plans tensor 1 x pipeline 2 x data 4, but the run has tensor 1 x "), "{layout}");
}

/// A damaged loss once made the axis of the chart endless.
#[test]
fn damaged_losses_are_not_drawn_and_are_written_in_short() {
    let mut run = run();
    let last = run.steps.records.last_mut().unwrap();
    (last.loss, last.valid_loss) = (1e300, Some(1.75e308));
    let document = Document::of(&Efficiency::of(&run, None), &run, None);
    let text = markdown::write(&document);
    assert!(text.contains("- loss: **1e300** (at step 8; validation 1.75e308 at step 8)"), "{text}");
    assert!(page::write(&document).len() < 1_000_000);
}

#[test]
fn two_runs_are_compared_with_warnings() {
    let (this, mut other) = (run(), run());
    other.config.train.seq_length = 16;
    other.steps.records.truncate(6);
    other.samples.records.clear();
    let e = Efficiency::of(&this, None).against(&this, &Efficiency::of(&other, None), &other);
    let against = e.against.as_ref().unwrap();
    assert_eq!(against.warnings, ["train.seq_length is 32 in this run and 16 in the other: no numbers compare"]);
    let row = |figure: &str| against.rows.iter().find(|row| row.figure == figure).unwrap();
    assert_eq!((row("loss of step 6").this, row("loss of step 6").ratio), (Some(4.0), Some(1.0)));
    assert_eq!((row("tokens/s per rank").this, row("tokens/s per rank").ratio), (Some(128.0), Some(2.0)));
    assert_eq!(row("tokens/s of all ranks").other, Some(256.0));
    let bubble = row("pipeline bubble, % of step");
    assert_eq!((bubble.this, bubble.other, bubble.ratio), (Some(25.0), None, None));
    assert_eq!(row("exposed communication per step, s: data").this, Some(0.25));
}

/// Missing files are named, text from files is escaped, and equal input gives equal bytes.
#[test]
fn a_document_is_complete_whatever_is_missing() {
    let written = |run: &Run| {
        let e = Efficiency::of(run, None);
        let document = Document::of(&e, run, None);
        (markdown::write(&document), page::write(&document), serde_json::to_string(&e).unwrap())
    };
    let mut run = run();
    assert_eq!(written(&run), written(&run));
    let (text, html, _) = written(&run);
    assert!(text.contains("| rank 3 | &lt;b> | 0.600 | 0.500 | 20.0 % |"), "{text}");
    assert!(!html.contains("<b>") && html.contains("&lt;b&gt;"));
    for needle in ["There is no `timeline.json`", "There is no `memory.json`", "--ranks 4 --cluster FILE"] {
        assert!(text.contains(needle), "{needle}: {text}");
    }
    (run.samples.records, run.machine) = (Vec::new(), Found::Absent);
    run.timeline = Found::Present(Timeline { step: 4, layout: [1, 2, 2], seconds: 0.0, ranks: Vec::new() });
    run.memory = Found::Ignored("`memory.json` is ignored: it lists 2 ranks".into());
    run.steps.records.iter_mut().for_each(|step| (step.loss, step.valid_loss) = (f64::NAN, None));
    let (text, html, json) = written(&run);
    assert_eq!(text.matches("`ranks.jsonl` has no sample of this layout").count(), 3, "{text}");
    assert!(text.contains("There is no MFU, since the peak of the device (no `machine.json`) is unknown"), "{text}");
    assert!(text.contains("\n`memory.json` is ignored: it lists 2 ranks.\n"), "{text}");
    assert!(text.contains("Note: `memory.json` is ignored: it lists 2 ranks\n"), "{text}");
    assert!(html.contains("no data") && json.contains("\"time\":null"));
    assert!(!html.contains("NaN") && !html.contains("inf"), "{html}");
}

/// English is forgotten while Japanese is learned: both have a curve, a row and their numbers.
#[test]
fn each_validation_set_has_its_curve() {
    let mut run = run();
    let set = |loss, bits_per_byte| SetRecord { loss, bits_per_byte, loss_tokens: 64 };
    for (step, ja, en) in [(2, 5.0, 3.0), (4, 4.0, 3.5)] {
        let valid = [("en".to_string(), set(en, None)), ("ja <b>".to_string(), set(ja, Some(ja / 2.0)))];
        run.steps.records[step - 1].valid = valid.into();
    }
    let e = Efficiency::of(&run, None);
    let en = SetChange { first: (2, set(3.0, None)), last: (4, set(3.5, None)) };
    assert_eq!(e.done.valid["en"], en);
    let document = Document::of(&e, &run, None);
    let (text, html) = (markdown::write(&document), page::write(&document));
    assert!(text.contains("| en | 2 | 3.0000 | unknown | 4 | 3.5000 | unknown | +0.5000 |"), "{text}");
    assert!(text.contains("| ja &lt;b> | 2 | 5.0000 | 2.5000 | 4 | 4.0000 | 2.0000 | -1.0000 |"), "{text}");
    assert!(text.contains("Charts in the HTML report: Validation loss; Bits per byte."), "{text}");
    assert!(html.contains("ja &lt;b&gt;") && html.contains("key-set-a") && html.contains("key-set-b"));
}
