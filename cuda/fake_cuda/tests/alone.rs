//! Tests in processes of their own: settings are read once from the environment, and a device that failed stays failed.

use std::any::type_name;
use std::io::Read;
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No test takes longer: one that does hangs.
const LIMIT: Duration = Duration::from_secs(60);
const INSIDE: &str = "FAKE_CUDA_ALONE";

pub struct Ended {
    pub status: ExitStatus,
    pub stderr: String,
}

impl Ended {
    #[track_caller]
    pub fn well(self) -> Ended {
        assert!(self.status.success(), "{}\n{}", self.status, self.stderr);
        self
    }

    #[track_caller]
    pub fn says(self, needle: &str) -> Ended {
        assert!(self.stderr.contains(needle), "no `{needle}` in: {}", self.stderr);
        self
    }
}

/// Runs `body`, a closure in the test's own function, in a process with this environment.
pub fn alone<F: FnOnce()>(env: &[(&str, &str)], body: F) -> Ended {
    named::<F>(env, body)
}

/// The same for the test whose function has the closure `N`.
pub fn named<N>(env: &[(&str, &str)], body: impl FnOnce()) -> Ended {
    // The type's name is `fake_cuda::streams::the_test::{{closure}}`.
    let name = type_name::<N>().split("::").skip(1).take_while(|part| !part.starts_with('{')).collect::<Vec<_>>();
    let name = name.join("::");
    if std::env::var(INSIDE).as_deref() == Ok(&name) {
        body();
        std::process::exit(0);
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&name, "--exact", "--nocapture"]).env(INSIDE, &name).envs(env.iter().copied());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut pipe = child.stderr.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text)
    });
    let start = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if start.elapsed() > LIMIT => {
                child.kill().unwrap();
                panic!("{name} does not end:\n{}", reader.join().unwrap().unwrap());
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    Ended { status, stderr: reader.join().unwrap().unwrap() }
}
