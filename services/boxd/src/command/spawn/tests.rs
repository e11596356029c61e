use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::wait::WaitStatus;
use nix::unistd::pipe2;

use super::*;
use crate::command::{CommandSpec, StandardStreams};

fn shell(script: &str) -> CommandSpec {
    command(&["sh", "-c", script])
}

fn command(argv: &[&str]) -> CommandSpec {
    CommandSpec {
        argv: argv.iter().map(Into::into).collect(),
        working_dir: None,
        variables: [("PATH".into(), "/usr/bin:/bin".into())].into(),
        user: None,
    }
}

/// Runs `file` to its end; returns its exit code and its output.
fn run_to_end(
    spawner: &mut Spawner,
    spec: &CommandSpec,
    file: &Path,
) -> io::Result<(WaitStatus, String)> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let streams = StandardStreams::Pipes {
        stdin: File::open("/dev/null")?.into(),
        stdout: writer.try_clone()?,
        stderr: writer,
    };
    let process = NewProcess::new(spec, file, streams)?;
    let pid = spawner.spawn(&process)?;
    drop(process);
    let mut output = String::new();
    File::from(reader).read_to_string(&mut output)?;
    Ok((waitpid(pid, None)?, output))
}

fn output_of(spec: &CommandSpec, file: &str) -> String {
    let mut spawner = Spawner::new().unwrap();
    let (status, output) = run_to_end(&mut spawner, spec, Path::new(file)).unwrap();
    assert!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    output
}

fn blocked_signals() -> u64 {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

#[test]
fn process_gets_its_arguments_variables_and_directory() {
    let mut spec = shell("echo $0; echo $NAME; pwd");
    spec.argv.push("zero".into());
    spec.variables.insert("NAME".into(), "a=b c".into());
    spec.working_dir = Some("/proc".into());
    assert_eq!(output_of(&spec, "/bin/sh"), "zero\na=b c\n/proc\n");
}

#[test]
fn process_leads_its_session_without_blocked_or_ignored_signals() {
    let before = blocked_signals();
    let script = "grep -E '^Sig(Blk|Ign)' /proc/self/status; \
                  read -r _ _ _ _ group session _ </proc/$$/stat; \
                  [ $group = $$ ] && [ $session = $$ ] && echo leads";
    let output = output_of(&shell(script), "/bin/sh");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(
        lines,
        [
            "SigBlk:\t0000000000000000",
            "SigIgn:\t0000000000000000",
            "leads"
        ]
    );
    assert_eq!(blocked_signals(), before, "those of the creator");
}

#[test]
fn process_inherits_only_its_standard_streams() {
    let open = File::open("/dev/null").unwrap();
    let number = fcntl(&open, FcntlArg::F_DUPFD_CLOEXEC(500)).unwrap();
    let output = output_of(&shell("exec ls /proc/self/fd"), "/bin/sh");
    let numbers: Vec<&str> = output.lines().collect();
    for standard in ["0", "1", "2"] {
        assert!(numbers.contains(&standard), "{output}");
    }
    assert!(!numbers.contains(&number.to_string().as_str()), "{output}");
}

#[test]
fn script_without_interpreter_line_is_run_by_the_shell() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    // By another process: a file that this one has open for writing is inherited by what the other tests
    // start meanwhile, and cannot be executed until they execute something (ETXTBSY).
    let mut write = shell(r#"echo 'echo "$0 $1"' >script && chmod 755 script"#);
    write.working_dir = Some(directory.path().to_owned());
    assert_eq!(output_of(&write, "/bin/sh"), "");
    let spec = command(&["ignored", "first"]);
    let output = output_of(&spec, script.to_str().unwrap());
    assert_eq!(output, format!("{} first\n", script.display()));
}

#[test]
fn failed_execution_returns_its_error_and_leaves_no_process() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("missing");
    let not_executable = directory.path().join("file");
    fs::write(&not_executable, "").unwrap();
    let mut spawner = Spawner::new().unwrap();
    for (file, expected) in [
        (missing, Errno::ENOENT),
        (not_executable, Errno::EACCES),
        (PathBuf::from("/dev/null/child"), Errno::ENOTDIR),
    ] {
        let error = run_to_end(&mut spawner, &command(&["name"]), &file).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(expected as i32), "{file:?}");
        let tasks = format!("/proc/self/task/{}/children", nix::unistd::gettid());
        assert_eq!(fs::read_to_string(tasks).unwrap(), "", "{file:?}");
    }
    let mut elsewhere = command(&["true"]);
    elsewhere.working_dir = Some(directory.path().join("nowhere"));
    let error = run_to_end(&mut spawner, &elsewhere, Path::new("/bin/true")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    // The next process does not see the earlier error.
    run_to_end(&mut spawner, &command(&["true"]), Path::new("/bin/true")).unwrap();
}

#[test]
fn process_of_another_user_has_its_ids() {
    let mut spec = shell("id -u; id -g; id -G");
    spec.working_dir = Some("/".into());
    spec.user = Some(crate::user::User {
        uid: 4242,
        gid: 4243,
        groups: vec![4244],
        name: String::new(),
        home: None,
    });
    assert_eq!(output_of(&spec, "/bin/sh"), "4242\n4243\n4243 4244\n");
}

#[test]
fn processes_start_while_other_threads_use_memory() {
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let texts: Vec<String> = (0..100).map(|number| number.to_string()).collect();
                    assert_eq!(texts.last().map(String::as_str), Some("99"));
                }
            });
        }
        let outputs = Spawner::new().and_then(|mut spawner| {
            let run = |number: u32| -> io::Result<String> {
                let spec = command(&["echo", &number.to_string()]);
                let (_, output) = run_to_end(&mut spawner, &spec, Path::new("/bin/echo"))?;
                Ok(output)
            };
            (0..200).map(run).collect::<io::Result<Vec<String>>>()
        });
        stop.store(true, Ordering::Relaxed);
        let expected: Vec<String> = (0..200).map(|number| format!("{number}\n")).collect();
        assert_eq!(outputs.unwrap(), expected);
    });
}
