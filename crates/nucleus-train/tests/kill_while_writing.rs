//! Processes that are killed, or whose files cannot grow, while they write checkpoints.
//!
//! The program is its own writer: with `NUCLEUS_WRITER` set it writes checkpoints to that folder until somebody ends it.

#[cfg(unix)]
#[path = "checkpoints/support.rs"]
mod support;

#[cfg(unix)]
fn main() -> std::process::ExitCode {
    unix::main()
}

// Elsewhere there is neither `kill -9` nor a limit on files.
#[cfg(not(unix))]
fn main() {}

#[cfg(unix)]
mod unix {
    use std::io::{BufRead, BufReader, Write};
    use std::path::Path;
    use std::process::{Child, ChildStdout, Command, ExitCode, Stdio};
    use std::time::Duration;

    use libtest_mimic::{Arguments, Failed, Trial};
    use nucleus_train::checkpoint::{CheckpointError, SavedCheckpoint, Store, list};

    use crate::support::{Run, numbered_options};

    const WRITER: &str = "NUCLEUS_WRITER";
    /// Elements of the largest weight: enough that writing takes longer than everything around it.
    const ELEMENTS: usize = 1 << 19;
    const KILLS: usize = 20;

    pub fn main() -> ExitCode {
        if let Some(out) = std::env::var_os(WRITER) {
            return write_until_killed(Path::new(&out));
        }
        let trials = vec![
            Trial::test("a_kill_at_any_instant_leaves_complete_checkpoints", || {
                kills().map_err(|error| Failed::from(error.to_string()))
            }),
            Trial::test("a_file_that_cannot_grow_leaves_the_last_checkpoint", || {
                full().map_err(|error| Failed::from(error.to_string()))
            }),
        ];
        libtest_mimic::run(&Arguments::from_args(), trials).exit();
    }

    /// Goes on from the newest checkpoint; each is written twice, so that kills fall into replacing as well.
    fn write_until_killed(out: &Path) -> ExitCode {
        let mut run = Run::new(ELEMENTS);
        let result = (|| {
            let mut store = Store::open(out, numbered_options(2))?;
            let first = list(out)?.last().map_or(0, |&(step, _)| step);
            // The parent waits for this line.
            std::io::stdout().write_all(b"ready\n").and_then(|()| std::io::stdout().flush()).ok();
            for step in first + 1.. {
                run.go_to(step);
                run.write(&mut store)?;
                run.write(&mut store)?;
            }
            Ok::<(), CheckpointError>(())
        })();
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                std::io::stderr().write_all(error.to_string().as_bytes()).ok();
                ExitCode::FAILURE
            }
        }
    }

    type Outcome = Result<(), Box<dyn std::error::Error>>;

    fn writer(out: &Path) -> std::io::Result<(Child, BufReader<ChildStdout>)> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(WRITER, out)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let stdout = child.stdout.take().ok_or_else(|| std::io::Error::other("no pipe"))?;
        Ok((child, BufReader::new(stdout)))
    }

    fn kills() -> Outcome {
        let folder = tempfile::tempdir()?;
        let out = folder.path();
        // A linear congruential generator: the delays are the same in every run, the instants are not.
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let (mut newest, mut interrupted) = (0, 0);
        for kill in 0..KILLS {
            let (mut child, mut stdout) = writer(out)?;
            let mut line = String::new();
            stdout.read_line(&mut line)?;
            assert_eq!(line, "ready\n", "kill {kill}: the writer starts");
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_micros(1_000 + (random >> 33) % 150_000));
            child.kill()?;
            let status = child.wait()?;
            assert!(status.code().is_none(), "kill {kill}: the writer had not ended by itself: {status}");

            let found = list(out)?;
            for (step, path) in &found {
                let saved = SavedCheckpoint::read(path)?;
                let mut expected = Run::new(ELEMENTS);
                expected.go_to(*step);
                expected.assert_saved(&saved);
            }
            let store = Store::open(out, numbered_options(2))?;
            interrupted += usize::from(!store.recovered().is_empty());
            let left = list(out)?;
            assert!(left.len() >= found.len() && left.len() <= 3, "kill {kill}: {left:?}");
            let last = left.last().map_or(0, |&(step, _)| step);
            assert!(last >= newest, "kill {kill}: step {newest} was there, now the newest is {last}");
            newest = last;
            for entry in std::fs::read_dir(out)? {
                let name = entry?.file_name().into_string().unwrap_or_default();
                assert!(name.starts_with("checkpoint-") || name == ".lock", "kill {kill} left `{name}`");
            }
        }
        assert!(newest > 0, "no writer completed a checkpoint");
        assert!(interrupted > 0, "no kill fell into writing");
        Ok(())
    }

    /// The limit on a file's size stands for a full disk: the system refuses a write in the middle of a file.
    fn full() -> Outcome {
        let folder = tempfile::tempdir()?;
        let out = folder.path();
        let mut run = Run::new(ELEMENTS);
        run.go_to(7);
        run.write(&mut Store::open(out, numbered_options(2))?)?;
        let output = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 64; exec \"$0\""])
            .arg(std::env::current_exe()?)
            .env(WRITER, out)
            .output()?;
        let error = String::from_utf8(output.stderr)?;
        assert_eq!(output.status.code(), Some(1), "{error}");
        // Two matrices and a bias of three numbers.
        let bytes = (2 * ELEMENTS + 3) * size_of::<f32>();
        for part in [
            format!("checkpoint 8 ({bytes} bytes) was not written: cannot write "),
            "diffusion_pytorch_model.safetensors`: ".to_owned(),
            format!("; the last good checkpoint is `{}`", out.join("checkpoint-7").display()),
        ] {
            assert!(error.contains(&part), "{error}\nlacks\n{part}");
        }
        let saved = SavedCheckpoint::read(&out.join("checkpoint-7"))?;
        run.assert_saved(&saved);
        assert!(!out.join(".checkpoint-8.partial").exists(), "what was begun is gone");
        Ok(())
    }
}
