//! One connection through the proxy: two directions, each with its own fault.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::{Counters, Flow, Gate, Plan};

const CHUNK: usize = 16 * 1024;

#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    ToNode,
    ToClient,
}

/// How one direction of a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Cut,
}

/// Joins a client to the node, until one of them or the plan ends it.
pub(super) async fn connection(
    client: TcpStream,
    gate: Gate,
    target: String,
    mut plan: watch::Receiver<Plan>,
    counters: Arc<Counters>,
) {
    if gate == Gate::Reset {
        let _ = client.set_zero_linger();
        return;
    }
    let Ok(node) = TcpStream::connect(&target).await else {
        let _ = client.set_zero_linger();
        return;
    };
    let _ = (client.set_nodelay(true), node.set_nodelay(true));
    counters.open.fetch_add(1, Ordering::Relaxed);
    let (client_read, client_write) = client.into_split();
    let (node_read, node_write) = node.into_split();

    let up = pump(client_read, node_write, plan.clone(), Direction::ToNode);
    let down = pump(node_read, client_write, plan.clone(), Direction::ToClient);
    tokio::pin!(up, down);
    // Leaving early drops a pump half-way, which resets both connections.
    let (mut up_done, mut down_done) = (None, None);
    while up_done.is_none() || down_done.is_none() {
        let (end, _) = tokio::select! {
            done = &mut up, if up_done.is_none() => up_done.insert(done),
            done = &mut down, if down_done.is_none() => down_done.insert(done),
            changed = plan.changed() => {
                let now = plan.borrow_and_update().gate;
                if changed.is_err() || matches!(now, Gate::Refuse | Gate::Reset) {
                    break;
                }
                continue;
            }
        };
        if *end == End::Cut {
            break;
        }
    }
    counters.open.fetch_sub(1, Ordering::Relaxed);
}

/// The half of a connection that is written to. Unless it was closed in order, dropping it
/// resets the connection instead of ending it politely, as tokio's own half does.
struct Writer(Option<OwnedWriteHalf>);

impl Writer {
    async fn close(mut self) {
        if let Some(mut half) = self.0.take() {
            let _ = half.shutdown().await;
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            let _ = half.as_ref().set_zero_linger();
            half.forget();
        }
    }
}

/// Carries bytes in one direction. Read and written apart, so that a delay adds latency
/// but takes no throughput. Answers the half that it read from, so that a socket stays
/// open until both of its directions have ended.
async fn pump(
    mut read: OwnedReadHalf,
    write: OwnedWriteHalf,
    plan: watch::Receiver<Plan>,
    direction: Direction,
) -> (End, OwnedReadHalf) {
    let mut writer = Writer(Some(write));
    let (queue, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(64);
    let write_on = async {
        while let (Some((at, bytes)), Some(half)) = (due.recv().await, writer.0.as_mut()) {
            sleep_until(at).await;
            if half.write_all(&bytes).await.is_err() {
                return End::Cut;
            }
        }
        End::Closed
    };
    let ends = tokio::join!(read_on(&mut read, plan, direction, queue), write_on);
    if ends != (End::Closed, End::Closed) {
        return (End::Cut, read);
    }
    writer.close().await;
    (End::Closed, read)
}

async fn read_on(
    read: &mut OwnedReadHalf,
    mut plan: watch::Receiver<Plan>,
    direction: Direction,
    queue: mpsc::Sender<(Instant, Vec<u8>)>,
) -> End {
    let mut buffer = vec![0; CHUNK];
    let mut seen = u64::MAX;
    let mut left = 0;
    let mut lost = false;
    loop {
        let most = match plan.borrow().flow(direction) {
            Flow::Throttle(rate) => (rate as usize / 20).clamp(1, CHUNK),
            _ => CHUNK,
        };
        let Ok(count) = read.read(&mut buffer[..most]).await else { return End::Cut };
        // The plan rules by the time that bytes arrive.
        let now = *plan.borrow();
        let flow = now.flow(direction);
        if count == 0 {
            if flow == Flow::Blackhole {
                // A silent peer does not say goodbye either.
                let healed = plan.wait_for(|plan| plan.flow(direction) != Flow::Blackhole).await;
                drop(healed);
                return End::Cut;
            }
            return End::Closed;
        }
        if now.change != seen {
            seen = now.change;
            if let Flow::CutAfter(bytes) = flow {
                left = bytes;
            }
        }
        let mut bytes = buffer[..count].to_vec();
        let mut at = Instant::now();
        let mut last = false;
        match flow {
            Flow::Pass => {}
            Flow::Delay(by) => at += by,
            Flow::Throttle(rate) => {
                sleep(Duration::from_secs_f64(count as f64 / f64::from(rate.max(1)))).await;
            }
            Flow::Blackhole => {
                lost = true;
                continue;
            }
            Flow::CutAfter(_) => {
                last = count >= left;
                bytes.truncate(left);
                left -= bytes.len();
            }
        }
        // After lost bytes the stream cannot be mended.
        if lost || queue.send((at, bytes)).await.is_err() || last {
            return End::Cut;
        }
    }
}
