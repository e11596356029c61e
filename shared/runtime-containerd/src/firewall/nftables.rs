//! nftables' own library, which the program `nft` consists of. A change by the program takes 16 ms, most of
//! it to start and end the program; by the library it takes a quarter of a millisecond.
//!
//! * I1. One command at a time: the library has global state. Commands run in the order of the calls.
//!   Changes that wait at the same time are one transaction: for each the library reads all chains, and the
//!   kernel checks all rules, so that one change takes 3 ms with 100 boxes.
//! * I2. A command whose caller gave up before its turn does not run. One that runs is completed.
//! * I3. The context of [`list`] and [`change`] belongs to the network namespace of the process. In another
//!   namespace [`run_here`] makes a context of its own.
//!
//! The library is loaded at the first command, not linked: the service starts on machines without it, and a
//! machine that has `nft` has it.

#![allow(unsafe_code, reason = "the library's interface is C")]

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::ptr::NonNull;
use std::sync::OnceLock;

use libloading::Library;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{Mutex, MutexGuard, oneshot};

/// The name that the dynamic linker looks for. The number is the version of the interface.
const LIBRARY: &str = "libnftables.so.1";
/// Lists are printed as JSON (`NFT_CTX_OUTPUT_JSON`).
const OUTPUT_JSON: c_uint = 1 << 4;
/// The most changes of one transaction.
const MAX_TOGETHER: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum NftablesError {
    #[error("cannot load {LIBRARY}: install nftables")]
    Load(#[from] libloading::Error),
    #[error("{LIBRARY} cannot open a connection to the kernel")]
    Connect(#[source] nix::Error),
    #[error("{LIBRARY} made no context")]
    Context,
    #[error("a command has a zero byte")]
    ZeroByte(#[from] std::ffi::NulError),
    /// With the library's own text.
    #[error("nftables: {0}")]
    Refused(String),
    #[error("a command of nftables was aborted")]
    Aborted,
}

/// The functions of the library. They stay valid: it is never unloaded.
struct Functions {
    new: unsafe extern "C" fn(c_uint) -> *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    set_output: unsafe extern "C" fn(*mut c_void, c_uint),
    buffer_output: unsafe extern "C" fn(*mut c_void) -> c_int,
    buffer_error: unsafe extern "C" fn(*mut c_void) -> c_int,
    run: unsafe extern "C" fn(*mut c_void, *const c_char) -> c_int,
    output: unsafe extern "C" fn(*mut c_void) -> *const c_char,
    error: unsafe extern "C" fn(*mut c_void) -> *const c_char,
}

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

impl Functions {
    /// Loads the library, unless it is loaded.
    fn get() -> Result<&'static Self, NftablesError> {
        if let Some(functions) = FUNCTIONS.get() {
            return Ok(functions);
        }
        let loaded = Self::load()?;
        Ok(FUNCTIONS.get_or_init(|| loaded))
    }

    fn load() -> Result<Self, NftablesError> {
        // SAFETY: the library's initialization has no requirements. The signatures are those of its
        // header nftables/libnftables.h, version 1.
        unsafe {
            let library = Library::new(LIBRARY)?;
            let functions = Self {
                new: *library.get(c"nft_ctx_new")?,
                free: *library.get(c"nft_ctx_free")?,
                set_output: *library.get(c"nft_ctx_output_set_flags")?,
                buffer_output: *library.get(c"nft_ctx_buffer_output")?,
                buffer_error: *library.get(c"nft_ctx_buffer_error")?,
                run: *library.get(c"nft_run_cmd_from_buffer")?,
                output: *library.get(c"nft_ctx_get_output_buffer")?,
                error: *library.get(c"nft_ctx_get_error_buffer")?,
            };
            std::mem::forget(library);
            Ok(functions)
        }
    }
}

/// A context of the library: a connection to the kernel, and what it knows of the rules there.
struct Context {
    functions: &'static Functions,
    pointer: NonNull<c_void>,
}

// SAFETY: the library binds a context to no thread.
unsafe impl Send for Context {}

impl Context {
    fn new() -> Result<Self, NftablesError> {
        let functions = Functions::get()?;
        // The library opens such a socket, and ends the process if it cannot: at the limit of descriptors.
        socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .map_err(NftablesError::Connect)?;
        // SAFETY: 0 is `NFT_CTX_DEFAULT`.
        let pointer = NonNull::new(unsafe { (functions.new)(0) }).ok_or(NftablesError::Context)?;
        let context = Self { functions, pointer };
        let pointer = context.pointer.as_ptr();
        // SAFETY: the context is valid.
        let failed = unsafe {
            (functions.set_output)(pointer, OUTPUT_JSON);
            (functions.buffer_output)(pointer) | (functions.buffer_error)(pointer)
        };
        match failed {
            0 => Ok(context),
            _ => Err(NftablesError::Context),
        }
    }

    /// Runs commands as one transaction, and returns what they list.
    fn run(&mut self, commands: &CStr) -> Result<String, NftablesError> {
        let pointer = self.pointer.as_ptr();
        // SAFETY: the context is valid, and the texts are until the next call.
        let (status, output, error) = unsafe {
            let status = (self.functions.run)(pointer, commands.as_ptr());
            // Reading a buffer empties it, so both are read each time.
            let output = text((self.functions.output)(pointer));
            (status, output, text((self.functions.error)(pointer)))
        };
        match status {
            0 => Ok(output),
            _ => Err(NftablesError::Refused(error.chars().take(1_000).collect())),
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: the context is valid, and nothing uses it any more.
        unsafe { (self.functions.free)(self.pointer.as_ptr()) };
    }
}

/// # Safety
/// `pointer` is null or a text that ends with a zero byte.
unsafe fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return String::new();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(pointer) }
        .to_string_lossy()
        .into_owned()
}

/// The context of the process's namespace. Its lock is the right to run a command (I1): it is given in the
/// order of the requests for it.
static CONTEXT: Mutex<Option<Context>> = Mutex::const_new(None);

/// The right to run the next command.
pub struct Turn(MutexGuard<'static, Option<Context>>);

/// Waits until no other command runs.
pub async fn turn() -> Turn {
    Turn(CONTEXT.lock().await)
}

impl Turn {
    /// Runs commands in the namespace of the process. It blocks.
    fn run(&mut self, commands: &CStr) -> Result<String, NftablesError> {
        let context = match &mut *self.0 {
            Some(context) => context,
            none => none.insert(Context::new()?),
        };
        context.run(commands)
    }
}

/// A change that waits for its turn.
struct Change {
    commands: CString,
    done: oneshot::Sender<Result<(), NftablesError>>,
}

/// In the order of the calls.
static CHANGES: parking_lot::Mutex<VecDeque<Change>> = parking_lot::const_mutex(VecDeque::new());

/// Runs commands in the namespace of the process, as one transaction, and returns what they list.
///
/// # Errors
/// [`NftablesError`].
pub async fn list(commands: &str) -> Result<String, NftablesError> {
    let commands = CString::new(commands)?;
    let mut turn = turn().await;
    let running = tokio::task::spawn_blocking(move || turn.run(&commands));
    running.await.unwrap_or(Err(NftablesError::Aborted))
}

/// Runs commands in the namespace of the process, as one transaction: their own, or that of all changes
/// which wait.
///
/// # Errors
/// [`NftablesError`].
pub async fn change(commands: &str) -> Result<(), NftablesError> {
    let commands = CString::new(commands)?;
    let (done, mut outcome) = oneshot::channel();
    CHANGES.lock().push_back(Change { commands, done });
    loop {
        let turn = turn().await;
        match outcome.try_recv() {
            Ok(outcome) => return outcome,
            Err(TryRecvError::Closed) => return Err(NftablesError::Aborted),
            Err(TryRecvError::Empty) => {}
        }
        // Those before this one, and with them this one, unless they are too many.
        let making = tokio::task::spawn_blocking(move || make_changes(turn));
        making.await.map_err(|_| NftablesError::Aborted)?;
    }
}

/// Makes the changes that wait together. If that is refused, each is made alone and has its own outcome.
fn make_changes(mut turn: Turn) {
    let changes = take_changes();
    if changes.len() > 1 && run_together(&mut turn, &changes).is_ok() {
        for change in changes {
            let _ = change.done.send(Ok(()));
        }
        return;
    }
    for Change { commands, done } in changes {
        let _ = done.send(turn.run(&commands).map(drop));
    }
}

/// Takes the next changes, without those whose callers gave up (I2).
fn take_changes() -> Vec<Change> {
    let mut waiting = CHANGES.lock();
    let count = waiting.len().min(MAX_TOGETHER);
    let taken = waiting.drain(..count);
    taken.filter(|change| !change.done.is_closed()).collect()
}

fn run_together(turn: &mut Turn, changes: &[Change]) -> Result<(), NftablesError> {
    let commands = changes.iter().map(|change| change.commands.to_bytes());
    let commands: Vec<&[u8]> = commands.collect();
    turn.run(&CString::new(commands.join(&b'\n'))?).map(drop)
}

/// Runs commands in the namespace of this thread, as one transaction. It blocks, and holds the turn until
/// the end.
///
/// # Errors
/// [`NftablesError`].
pub fn run_here(_turn: Turn, commands: &str) -> Result<(), NftablesError> {
    let commands = CString::new(commands)?;
    Context::new()?.run(&commands).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn refused_command_has_the_librarys_text_and_the_next_one_runs() {
        for _ in 0..2 {
            let refused = list("add nonsense\n").await.unwrap_err();
            let text = refused.to_string();
            assert!(text.contains("syntax error"), "{text}");
            assert_eq!(text.matches("syntax error").count(), 1, "{text}");
        }
        assert!(matches!(
            change("a\0b").await,
            Err(NftablesError::ZeroByte(_))
        ));
    }

    #[tokio::test]
    async fn each_of_the_changes_that_wait_together_has_its_own_outcome() {
        let held = turn().await;
        let changes: Vec<_> = (0..2 * MAX_TOGETHER)
            .map(|i| tokio::spawn(async move { change(&format!("add nonsense{i}\n")).await }))
            .collect();
        let nothing = tokio::spawn(change("# nothing\n"));
        while CHANGES.lock().len() <= changes.len() {
            tokio::task::yield_now().await;
        }
        drop(held);
        for (i, change) in changes.into_iter().enumerate() {
            let refused = change.await.unwrap().unwrap_err().to_string();
            assert!(refused.contains(&format!("nonsense{i}\n")), "{refused}");
        }
        nothing.await.unwrap().unwrap();
    }
}
