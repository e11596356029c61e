//! The RPCs of the exec-proxies.

use super::{
    ActivityReply, ActivityRequest, ArchiveReply, ArchiveRequest, ExecutionsReply,
    ExecutionsRequest, FromBox, MeterReply, Open, ToBox, UsageReply, UsageRequest,
};
use crate::rpc::{ClusterRpc, SessionRpc};

/// A session with a box: one exec, one attach or one log stream.
pub struct BoxSession;

impl SessionRpc for BoxSession {
    const METHOD: &'static str = "open";
    type Open = Open;
    type ToServer = ToBox;
    type ToOpener = FromBox;
}

/// Measures the resources that one box uses.
pub struct GetUsage;

impl ClusterRpc for GetUsage {
    const METHOD: &'static str = "usage";
    type Request = UsageRequest;
    type Reply = UsageReply;
}

/// Reads the counters of one box, to meter its use.
pub struct MeterUsage;

impl ClusterRpc for MeterUsage {
    const METHOD: &'static str = "meter";
    type Request = UsageRequest;
    type Reply = MeterReply;
}

/// Asks whether a box is in use, before its environment is ended as idle.
pub struct GetActivity;

impl ClusterRpc for GetActivity {
    const METHOD: &'static str = "activity";
    type Request = ActivityRequest;
    type Reply = ActivityReply;
}

/// Reads the states of the executions of one box, for the events about them.
pub struct GetExecutions;

impl ClusterRpc for GetExecutions {
    const METHOD: &'static str = "executions";
    type Request = ExecutionsRequest;
    type Reply = ExecutionsReply;
}

/// Archives the last output of a box before the box is removed.
pub struct ArchiveOutput;

impl ClusterRpc for ArchiveOutput {
    const METHOD: &'static str = "archive";
    type Request = ArchiveRequest;
    type Reply = ArchiveReply;
}
