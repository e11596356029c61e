//! A TCP relay between exec-proxy and a box, which a test can disconnect.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub struct Relay {
    pub address: SocketAddr,
    /// The number of bytes from the box so far.
    from_box: Arc<AtomicU64>,
    cuts: watch::Sender<u64>,
    answers_held: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let cuts = watch::Sender::new(0);
        let from_box = Arc::new(AtomicU64::new(0));
        let answers_held = watch::Sender::new(false);
        let (cut, held, count) = (cuts.clone(), answers_held.clone(), Arc::clone(&from_box));
        let task = tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else {
                    return;
                };
                let held = held.subscribe();
                tokio::spawn(copy(
                    near,
                    target,
                    cut.subscribe(),
                    held,
                    Arc::clone(&count),
                ));
            }
        });
        Self {
            address,
            from_box,
            cuts,
            answers_held,
            task,
        }
    }

    /// Holds back the bytes from the box, until the relay is dropped.
    pub fn hold_answers(&self) {
        self.answers_held.send_replace(true);
    }

    /// Closes every open connection.
    pub fn disconnect(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    pub fn bytes_from_box(&self) -> u64 {
        self.from_box.load(Ordering::Relaxed)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.disconnect();
    }
}

async fn copy(
    near: TcpStream,
    target: SocketAddr,
    mut cut: watch::Receiver<u64>,
    mut answers_held: watch::Receiver<bool>,
    count: Arc<AtomicU64>,
) {
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    let (mut near_read, mut near_write) = near.into_split();
    let (mut far_read, mut far_write) = far.into_split();
    let there = async {
        tokio::io::copy(&mut near_read, &mut far_write)
            .await
            .map(drop)
    };
    let back = async {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let read = far_read.read(&mut buffer).await?;
            if read == 0 {
                return Ok::<_, std::io::Error>(());
            }
            // Fails when the relay was dropped.
            if answers_held.wait_for(|held| !held).await.is_err() {
                return Ok(());
            }
            near_write.write_all(&buffer[..read]).await?;
            count.fetch_add(read as u64, Ordering::Relaxed);
        }
    };
    tokio::select! {
        _ = there => {}
        _ = back => {}
        _ = cut.changed() => {}
    }
}
