//! Decoding as lenient as Go's, on documents of the shapes that servers really send.

use super::*;

#[test]
fn null_is_absent_for_every_kind_of_field() {
    let json = r#"{"Node":{"ID":9007199254740993,"StableID":"n1","Name":null,"User":null,"Key":"nodekey:0000000000000000000000000000000000000000000000000000000000000001",
        "DiscoKey":null,"Addresses":["100.64.0.1/32"],"AllowedIPs":null,"Endpoints":null,"Tags":null,"CapMap":{"some-cap":null},"Hostinfo":{"sshHostKeys":null},"Online":null},
        "Peers":null,"PacketFilters":{"base":null},"OnlineChange":{"12":true},"SomethingNew":{"x":[1]},"UserProfiles":null}"#;
    let map: MapResponse = serde_json::from_str(json).unwrap();
    let node = map.node.unwrap();
    assert_eq!(node.id, 9_007_199_254_740_993);
    assert!(node.disco_key.is_zero());
    assert_eq!(node.effective_allowed_ips(), node.addresses.as_slice());
    assert!(node.cap_map["some-cap"].is_empty());
    assert_eq!(map.online_change.get(&12), Some(&true));
    assert!(map.packet_filters.unwrap()["base"].is_none());
}

#[test]
fn an_empty_allowed_ips_list_means_none() {
    let node: Node =
        serde_json::from_str(r#"{"Addresses":["100.64.0.1/32"],"AllowedIPs":[]}"#).unwrap();
    assert!(node.effective_allowed_ips().is_empty());
}

#[test]
fn a_null_region_and_integer_keys_are_read() {
    let map: DerpMap =
        serde_json::from_str(r#"{"Regions":{"900":{"RegionID":900,"Nodes":null},"901":null},"HomeParams":{"RegionScore":{"900":0.5}}}"#)
            .unwrap();
    let regions = map.regions.unwrap();
    assert!(regions[&901].is_none());
    assert_eq!(regions[&900].as_ref().unwrap().region_id, 900);
}

#[test]
fn the_ssh_policy_mixes_lower_camel_and_pascal_case() {
    let json = r#"{"rules":[{"principals":[{"any":true}],"sshUsers":{"*":"="},"action":{"accept":true,"recorders":["100.64.0.9:80"],
        "onRecordingFailure":{"RejectSessionWithMessage":"no","NotifyURL":"https://unused/x"}}}]}"#;
    let policy: SshPolicy = serde_json::from_str(json).unwrap();
    let action = &policy.rules[0].action;
    assert_eq!(action.recorders, ["100.64.0.9:80"]);
    assert_eq!(
        action
            .on_recording_failure
            .as_ref()
            .unwrap()
            .reject_session_with_message,
        "no"
    );
    let text = serde_json::to_string(&policy).unwrap();
    assert!(text.contains("\"RejectSessionWithMessage\":\"no\""));
    assert!(text.contains("\"sshUsers\""));
}

#[test]
fn a_register_request_never_prints_its_auth_key() {
    let request = RegisterRequest {
        auth: Some(RegisterAuth {
            auth_key: "tskey-auth-secret".to_owned(),
        }),
        ..RegisterRequest::default()
    };
    assert!(!format!("{request:?}").contains("secret"));
    assert!(
        serde_json::to_string(&request)
            .unwrap()
            .contains("tskey-auth-secret")
    );
}
