//! Which lines of a stock `tailscaled`'s log are suspicious. Its log has no levels, so a line is a suspect when it contains one
//! of [`ALARMS`], unless one of [`ENVIRONMENT`] explains it: the machine, or how the daemon was started, and never the control
//! server or a peer. A line that only a peer or control of ours could cause is never listed there. Called by `tailscaled.rs`.

/// A suspicious line.
#[derive(Debug)]
pub(crate) struct Suspect {
    /// The word that raised suspicion.
    pub(crate) alarm: &'static str,
    /// The whole line.
    pub(crate) line: String,
}

/// Words, in lower case, that a healthy run does not print.
const ALARMS: [&str; 35] = [
    "error",
    "fail",
    "warning",
    "[unexpected]",
    "panic",
    "fatal",
    "bad ",
    "invalid",
    "malformed",
    "mismatch",
    "unknown",
    "unsupported",
    "not supported",
    "timeout",
    "timed out",
    "unable",
    "cannot",
    "can't",
    "couldn't",
    "could not",
    "denied",
    "refused",
    "rejected",
    "reset by",
    "broken pipe",
    "eof",
    "unreachable",
    "lost",
    "dropping",
    "dropped",
    "no such",
    "canceled",
    // The node left the state that it has to stay in.
    "running ->",
    // The last connection to control did not last.
    "forcing port 443",
    // A peer said that it lives at a relay where it is not.
    "does not know about peer",
];

/// A line that contains `text` is explained by `reason`.
#[derive(Debug, Clone, Copy)]
struct Explained {
    /// A part of the line that no other line has.
    text: &'static str,
    /// What causes the line.
    #[expect(dead_code, reason = "it is read by people")]
    reason: &'static str,
}

/// All but the last were seen as well in a tailnet that consists of stock parts only.
const ENVIRONMENT: [Explained; 9] = [
    Explained {
        text: "TPM: error opening",
        reason: "the machine has no trusted platform module",
    },
    Explained {
        text: "logpolicy.ConfigFromFile ",
        reason: "a fresh state directory has no log configuration yet",
    },
    Explained {
        text: "dns: [rc=unknown ret=direct]",
        reason: "the machine has no resolver service; the daemon does not manage DNS here",
    },
    Explained {
        text: "dns: inotify: NewDirWatcher: context canceled",
        reason: "the watcher of resolv.conf ends when userspace mode replaces the DNS manager",
    },
    Explained {
        text: "tstun: error initializing tun dev stats polling",
        reason: "userspace mode has no TUN device",
    },
    Explained {
        text: "health(warnable=wantrunning-false): error: Tailscale is stopped.",
        reason: "the daemon runs before `tailscale up` was called",
    },
    Explained {
        text: "health(warnable=warming-up): error: Tailscale is starting.",
        reason: "it is set on start and cleared when the node is Running",
    },
    Explained {
        text: "magicsock: last netcheck reported send error. Rebinding.",
        reason: "on loopback a STUN answer may overtake the note that its request was sent",
    },
    Explained {
        text: "[RATELIMIT] format(",
        reason: "when many peers join, the daemon thins its own log and says so",
    },
];

/// `None`: a healthy line.
pub(crate) fn suspect(line: &str) -> Option<Suspect> {
    let lower = line.to_lowercase();
    let alarm = ALARMS.into_iter().find(|alarm| lower.contains(alarm))?;
    let explained = ENVIRONMENT.iter().any(|known| line.contains(known.text));
    (!explained).then(|| Suspect {
        alarm,
        line: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_healthy_line_is_no_suspect() {
        for line in [
            "control: NetInfo: NetInfo{varies= ipv6=false udp=true derp=#900}",
            "Switching ipn state Starting -> Running (WantRunning=true, nm=true)",
            "health(warnable=warming-up): ok",
            "[RATELIMIT] format(\"wgengine: Reconfig: user dialer\") (3 dropped)",
            "ipnext: active extensions: captiveportal, acme, portlist, taildrop",
        ] {
            assert!(suspect(line).is_none(), "{line}");
        }
    }

    #[test]
    fn a_broken_map_stream_is_a_suspect() {
        for line in [
            "control: mapRoutine: state:authenticated; PollNetMap: unexpected EOF",
            "control: map response long-poll timed out!",
            "health(warnable=not-in-map-poll): error: Unable to connect to the coordination server.",
            "Switching ipn state Running -> Starting (WantRunning=true, nm=true)",
            "netmap: flagExpiredPeers: [unexpected] delta-adjusted current time is before hardcoded epoch; skipping",
            "control: controlhttp: forcing port 443 dial due to recent noise dial",
            "magicsock: derp-900 does not know about peer [b14Mw], removing route",
            "wg: [yDXf6] - Received invalid response message from 127.0.0.1:1",
            "wg: [yDXf6] - Failed to send handshake initiation: no UDP or DERP addr",
        ] {
            assert!(suspect(line).is_some(), "{line}");
        }
    }

    #[test]
    fn only_the_whole_known_text_explains_a_line() {
        assert!(suspect("TPM: error opening: stat /dev/tpmrm0: no such file").is_none());
        assert!(suspect("health(warnable=warming-up): error: other").is_some());
    }
}
