//! The verdict as one sentence: which rank is missing in what, where it is, and who waits for it.

use super::Watched;
use engine::config::Axis;
use engine::flight::{Blocked, Cause, Channel, Condition, Seen, Verdict};
use std::time::Duration;

/// The most ranks that a sentence lists.
const LISTED: usize = 8;

pub fn of(verdict: &Verdict, ranks: &[Option<Seen>], watched: &Watched, idle: Duration) -> String {
    let says = Says { verdict, ranks, watched };
    let since = format!("no progress for {} s", idle.as_secs());
    match &verdict.cause {
        // Known at once, not for want of progress.
        Cause::Died(rank) => format!(
            "{} has died without a message{}: a signal killed it, perhaps the kernel's for want of memory (dmesg \
             tells){}",
            says.rank(*rank),
            says.place(*rank, " "),
            says.waiting()
        ),
        Cause::Stopped(rank) => says.missing(&since, *rank, "is stopped by a signal or a debugger", " "),
        Cause::Silent(rank) => {
            let silent =
                "does not answer, nor does any other rank of its host: the host, its network or its disk is gone";
            says.missing(&since, *rank, silent, "")
        }
        Cause::Busy(rank) => says.missing(&since, *rank, "does not go on", ": it is "),
        Cause::Call(call) => format!(
            "{since}: {} does not complete, although ranks {} have all reached it: a network or a device between their \
             hosts does not answer{}",
            says.call(call),
            listed(&verdict.waiting),
            verdict.waiting.first().map_or(String::new(), |rank| says.place(*rank, &format!("; rank {rank} was "))),
        ),
        Cause::Circle(circle) => format!("{since}: ranks {} wait for each other in a circle", listed(circle)),
    }
}

struct Says<'a> {
    verdict: &'a Verdict,
    ranks: &'a [Option<Seen>],
    watched: &'a Watched,
}

impl Says<'_> {
    /// The sentence for a rank that holds up the run, and `does` something at its place.
    fn missing(&self, since: &str, rank: usize, does: &str, at: &str) -> String {
        let missing = self.verdict.missing.as_ref().map(|call| format!(", missing in {},", self.call(call)));
        let place = if at.is_empty() { String::new() } else { self.place(rank, at) };
        format!("{since}: {}{} {does}{place}{}", self.rank(rank), missing.unwrap_or_default(), self.waiting())
    }

    /// "rank 3 (tp 1, pp 0, dp 1) on gpu042".
    fn rank(&self, rank: usize) -> String {
        let mesh = &self.watched.rank_layout.mesh;
        let [tp, pp] = [Axis::Tensor, Axis::Pipeline].map(|axis| mesh.coord(rank, axis));
        let dp = mesh.replica(rank);
        format!("rank {rank} (tp {tp}, pp {pp}, dp {dp}) on {}", self.watched.places[rank].host)
    }

    /// "reduce-scatter #199 of the data group".
    fn call(&self, call: &Blocked) -> String {
        let Blocked { channel, number, .. } = *call;
        let known = self.ranks.iter().flatten().find_map(|seen| seen.snapshot.call(channel, number));
        let what = known.unwrap_or("a call");
        match channel {
            Channel::Host => format!("{what} #{number} of all ranks' hosts"),
            Channel::HostGroup => format!("{what} #{number} of some ranks' hosts"),
            Channel::Group(kind) => format!("{what} #{number} of the {} group", kind.name()),
        }
    }

    /// "at step 12, ...", after `before`: the rank's place; empty where it is not known.
    fn place(&self, rank: usize, before: &str) -> String {
        let Some(seen) = &self.ranks[rank] else { return String::new() };
        let disk = match seen.condition {
            Condition::InKernel => ", in a system call that does not return, most often of a disk",
            _ => "",
        };
        // "step 12, ...", or "before the first step, ...".
        let at = if seen.snapshot.place.starts_with("step ") { "at " } else { "" };
        format!("{before}{at}{}{disk}", seen.snapshot.place)
    }

    /// Who waits for the rank that is missing.
    fn waiting(&self) -> String {
        match (self.verdict.missing, &self.verdict.waiting[..]) {
            (None, _) | (_, []) => String::new(),
            (_, [one]) => format!("; rank {one} waits for it there"),
            (_, several) => format!("; ranks {} wait for it there", listed(several)),
        }
    }
}

/// "0, 1, 2 and 5 more".
fn listed(ranks: &[usize]) -> String {
    let shown: Vec<String> = ranks.iter().take(LISTED).map(usize::to_string).collect();
    let more = ranks.len().saturating_sub(LISTED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::RunStatus;
    use engine::config::Config;
    use engine::flight::{Recorder, verdict};
    use engine::layout::mesh::GroupKind;
    use engine::layout::placement::RankSlot;
    use engine::layout::rank_layout::RankLayout;
    use engine::model::param_specs::Unit;
    use engine::scope::Scope;
    use std::sync::Arc;

    const CONFIG: &str = "[model]\narchitecture = \"llama\"\nhidden_size = 16\nintermediate_size = 8\n\
        num_hidden_layers = 2\nnum_attention_heads = 4\nvocab_size = 31\nmax_position_embeddings = 32\n\
        rope_theta = 10000.0\nrms_norm_eps = 1e-5\n[train]\nseq_length = 32\nglobal_batch_size = 8\nsteps = 2\n\
        [optimizer]\nlr = 1e-3\n[data]\ntrain = [ { prefix = \"x\" } ]\n[checkpoint]\ndir = \"x\"\n\
        [parallel]\ntensor = 2\n";

    /// Two tensor-parallel ranks on two hosts.
    fn watched() -> Watched {
        let config = Config::from_resolved(CONFIG).unwrap();
        let rank_layout = RankLayout::new(&config, config.mesh(2).unwrap(), 0);
        let place = |node: usize| RankSlot { host: format!("gpu{node}"), node, local: 0 };
        let status = Arc::new(RunStatus::new("x".as_ref(), 0, 2));
        Watched { places: vec![place(0), place(1)], rank_layout, limit: Duration::ZERO, dir: "x".into(), status }
    }

    fn sentence(ranks: &[Option<Seen>]) -> String {
        let verdict = verdict(ranks, &|_, _| vec![0, 1]);
        of(&verdict, ranks, &watched(), Duration::from_secs(20))
    }

    fn seen(rank: usize, condition: Condition, record: impl FnOnce(&Recorder)) -> Option<Seen> {
        let recorder = Recorder::default();
        recorder.is_rank(rank);
        recorder.step(12);
        recorder.scope(Scope::Backward { chunk: 0, mb: 3 });
        recorder.scope(Scope::Unit(Unit::Layer(5)));
        record(&recorder);
        Some(Seen { snapshot: recorder.snapshot(), condition, idle: 20.0 })
    }

    fn waits_in_tensor(recorder: &Recorder) {
        let tensor = Channel::Group(GroupKind::Tensor);
        let number = recorder.start(tensor, "reduce-scatter", 64);
        std::mem::forget(recorder.wait(tensor, number, None));
    }

    #[test]
    fn the_rank_its_place_and_those_that_wait_are_named() {
        let waits = || seen(0, Condition::Runs, waits_in_tensor);
        assert_eq!(
            sentence(&[waits(), seen(1, Condition::Stopped, |recorder| recorder.op("matmul_nn"))]),
            "no progress for 20 s: rank 1 (tp 1, pp 0, dp 0) on gpu1, missing in reduce-scatter #1 of the tensor \
             group, is stopped by a signal or a debugger at step 12, backward of micro-batch 3, layer 5, matmul_nn; \
             rank 0 waits for it there"
        );
        assert_eq!(
            sentence(&[waits(), seen(1, Condition::InKernel, |recorder| std::mem::forget(recorder.work("save")))]),
            "no progress for 20 s: rank 1 (tp 1, pp 0, dp 0) on gpu1, missing in reduce-scatter #1 of the tensor \
             group, does not go on: it is at step 12, backward of micro-batch 3, layer 5, save, in a system call that \
             does not return, most often of a disk; rank 0 waits for it there"
        );
        assert!(
            sentence(&[waits(), None]).contains("gpu1, missing in reduce-scatter #1 of the tensor group, does not")
        );
        let died = sentence(&[waits(), seen(1, Condition::Died, |_| ())]);
        assert!(died.starts_with("rank 1 (tp 1, pp 0, dp 0) on gpu1 has died without a message at step 12"), "{died}");
        let both = sentence(&[waits(), seen(1, Condition::Runs, waits_in_tensor)]);
        assert!(
            both.contains("reduce-scatter #1 of the tensor group does not complete, although ranks 0, 1"),
            "{both}"
        );
    }
}
