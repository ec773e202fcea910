//! A TCP proxy on loopback that breaks what passes through it, on command.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::connection::{Direction, connection};
use crate::{Context, Result, eventually};

mod connection;

/// Stands between a daemon and a node. Every change takes effect at once, on open
/// connections too. Closed when dropped.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    plan: watch::Sender<Plan>,
    counters: Arc<Counters>,
    _task: JoinSet<()>,
}

/// What happens to connections.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Gate {
    /// They are accepted and joined to the node.
    #[default]
    Open,
    /// Nobody listens: connecting is refused. Open connections are reset.
    Refuse,
    /// Each is reset (RST) as soon as it is accepted. Open ones are reset.
    Reset,
    /// The kernel accepts them, the program never does: what is sent stays unread.
    /// Connections that are open go on.
    Unaccepted,
    /// Connecting hangs, as with a host that is gone. Connections that are open go on.
    Unreachable,
}

/// What happens to bytes in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Flow {
    /// They pass.
    #[default]
    Pass,
    /// They pass this much later.
    Delay(Duration),
    /// At most so many bytes a second pass, on each connection.
    Throttle(u32),
    /// They are read and thrown away; nothing is ever answered or closed.
    Blackhole,
    /// So many more bytes pass on each connection, then it is reset.
    CutAfter(usize),
}

#[derive(Debug, Clone, Copy, Default)]
struct Plan {
    gate: Gate,
    to_node: Flow,
    to_client: Flow,
    // Counts the changes, so that each connection begins to count bytes anew.
    change: u64,
}

#[derive(Debug, Default)]
struct Counters {
    accepted: AtomicUsize,
    open: AtomicUsize,
    ready: AtomicUsize,
}

// === impl FaultProxy ===

impl FaultProxy {
    /// Starts one in front of `target` (`127.0.0.1:8200`, with or without a scheme).
    pub async fn start(target: &str) -> Result<Self> {
        Self::start_at((Ipv4Addr::LOCALHOST, crate::free_port()?).into(), target).await
    }

    /// Starts one that listens at `address`: any of 127.0.0.0/8 can be bound, so that a
    /// name can have several addresses of one port. Port 0 takes a free one.
    pub async fn start_at(address: SocketAddr, target: &str) -> Result<Self> {
        let target = target.split("://").last().unwrap_or(target).trim_end_matches('/').to_owned();
        let listener = bind(address).await?;
        let address = listener.local_addr()?;
        let (plan, seen) = watch::channel(Plan::default());
        let counters = Arc::new(Counters::default());
        let mut task = JoinSet::new();
        task.spawn(accept_loop(listener, address, target, seen, Arc::clone(&counters)));
        Ok(Self { address, plan, counters, _task: task })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The address to give to the daemon, with this scheme.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://{}", self.address)
    }

    /// `https://127.0.0.1:<port>`.
    pub fn https(&self) -> String {
        self.url("https")
    }

    /// How many connections it has accepted.
    pub fn connections(&self) -> usize {
        self.counters.accepted.load(Ordering::Relaxed)
    }

    /// How many are open now.
    pub fn open_connections(&self) -> usize {
        self.counters.open.load(Ordering::Relaxed)
    }

    /// Changes what happens to connections; waits until it is so.
    pub async fn gate(&self, gate: Gate) -> Result {
        let before = self.counters.ready.load(Ordering::SeqCst);
        self.change(|plan| plan.gate = gate);
        eventually("the fault proxy has changed", Duration::from_secs(10), || async {
            Ok((self.counters.ready.load(Ordering::SeqCst) > before).then_some(()))
        })
        .await
    }

    /// Changes what happens to requests.
    pub fn to_node(&self, flow: Flow) {
        self.change(|plan| plan.to_node = flow);
    }

    /// Changes what happens to answers.
    pub fn to_client(&self, flow: Flow) {
        self.change(|plan| plan.to_client = flow);
    }

    /// Nobody listens any more.
    pub async fn refuse(&self) -> Result {
        self.gate(Gate::Refuse).await
    }

    /// Connections are reset.
    pub async fn reset(&self) -> Result {
        self.gate(Gate::Reset).await
    }

    /// Connecting works, what is sent is read, and nothing is ever answered.
    pub fn blackhole(&self) {
        self.to_client(Flow::Blackhole);
        self.to_node(Flow::Blackhole);
    }

    /// Answers come this much later.
    pub fn delay(&self, by: Duration) {
        self.to_client(Flow::Delay(by));
    }

    /// Answers break off after so many bytes.
    pub fn cut_answers_after(&self, bytes: usize) {
        self.to_client(Flow::CutAfter(bytes));
    }

    /// All passes again. A connection that was blackholed has lost bytes and is reset.
    pub async fn heal(&self) -> Result {
        self.change(|plan| {
            plan.to_node = Flow::Pass;
            plan.to_client = Flow::Pass;
        });
        self.gate(Gate::Open).await
    }

    fn change(&self, edit: impl FnOnce(&mut Plan)) {
        self.plan.send_modify(|plan| {
            edit(plan);
            plan.change += 1;
        });
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener> {
    // tokio sets SO_REUSEADDR, so the same port can be bound again at once.
    TcpListener::bind(address).await.context(address)
}

async fn accept_loop(
    listener: TcpListener,
    address: SocketAddr,
    target: String,
    mut plan: watch::Receiver<Plan>,
    counters: Arc<Counters>,
) {
    let mut listener = Some(listener);
    let mut fillers = Vec::new();
    let mut connections = JoinSet::new();
    loop {
        let gate = plan.borrow_and_update().gate;
        if gate == Gate::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = bind(address).await.ok();
        }
        if let (Gate::Unreachable, Some(listener)) = (gate, &listener) {
            fillers = fill_backlog(listener, address).await;
        } else if !fillers.is_empty() {
            fillers.clear();
            if let Some(listener) = &listener {
                let _ = rustix::net::listen(listener, 1024);
            }
        }
        counters.ready.fetch_add(1, Ordering::SeqCst);

        loop {
            let accepts = matches!(gate, Gate::Open | Gate::Reset);
            tokio::select! {
                changed = plan.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
                Some(_ended) = connections.join_next() => {}
                Ok((client, _)) = accept(listener.as_ref()), if accepts => {
                    counters.accepted.fetch_add(1, Ordering::Relaxed);
                    let work =
                        connection(client, gate, target.clone(), plan.clone(), Arc::clone(&counters));
                    connections.spawn(work);
                }
            }
        }
    }
}

async fn accept(
    listener: Option<&TcpListener>,
) -> std::io::Result<(TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// With its queue of unaccepted connections full, Linux drops further SYNs.
async fn fill_backlog(listener: &TcpListener, address: SocketAddr) -> Vec<TcpStream> {
    let _ = rustix::net::listen(listener, 0);
    let mut fillers = Vec::new();
    loop {
        let connect = TcpStream::connect(address);
        match tokio::time::timeout(Duration::from_millis(100), connect).await {
            Ok(Ok(stream)) if fillers.len() < 64 => fillers.push(stream),
            _ => return fillers,
        }
    }
}

// === impl Plan ===

impl Plan {
    const fn flow(&self, direction: Direction) -> Flow {
        match direction {
            Direction::ToNode => self.to_node,
            Direction::ToClient => self.to_client,
        }
    }
}
