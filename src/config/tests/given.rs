//! What is given by slip: an address that may not be spoken to, and variables that nobody reads.

use super::*;

#[test]
fn plain_http_to_a_public_address_is_refused_however_it_is_written() {
    for public in [
        "http://8.8.8.8",
        "http://8.8.8.8:8080/",
        "http://134744072",
        "http://0x8.8.8.8",
        "http://[2001:db8::1]:80",
        "http://[::ffff:8.8.8.8]",
        "http://0.0.0.0:8080",
        "http://100.64.0.1",
    ] {
        let told = told(load_with(NEEDED, &[("control_url", public)], &[]));
        let expected = format!(
            "control_url = {public:?} (from --control-url) cannot be used; plain HTTP is for control servers on loopback or a private network"
        );
        assert!(told.starts_with(&expected), "{told}");
    }
    for private in [
        "http://127.0.0.1:8080",
        "http://10.0.0.1",
        "http://[fd00::1]:8080",
        "http://[::1]",
        "http://headscale.example:8080",
        "http://169.254.1.1",
    ] {
        let config = load_with(NEEDED, &[("control_url", private)], &[]).unwrap();
        // A name is judged by what it resolves to, as its address is here.
        assert!(config.check_control("10.0.0.1".parse().unwrap()).is_ok());
        let error = config.check_control("8.8.8.8".parse().unwrap());
        assert!(matches!(error, Err(ConfigError::Value { .. })), "{error:?}");
    }
}

#[test]
fn a_variable_that_is_misspelt_is_told_with_the_one_that_is_meant() {
    let noted = |variables: &[(&str, &str)]| {
        let needed = [
            ("TAILTAPE_STORE", "memory://"),
            ("TAILTAPE_CONTROL_URL", "http://127.0.0.1:8080"),
            ("HOME", "/home/op"),
        ];
        let environment = Environment::of(&[&needed[..], variables].concat());
        load(&Flags::default(), &environment).unwrap().notes
    };
    assert_eq!(
        noted(&[
            ("TAILTAPE_COMIT_INTERVAL", "5s"),
            ("TAILTAPE_AUTHKEY", "tskey-auth-s3cr3t"),
            ("TAILTAPE_FLAVOUR", "s3cr3t"),
            ("TAILTAPE_CONFIGS", ""),
        ]),
        [
            "TAILTAPE_AUTHKEY in the environment is no setting, and is ignored: perhaps TAILTAPE_AUTH_KEY is meant",
            "TAILTAPE_COMIT_INTERVAL in the environment is no setting, and is ignored: perhaps TAILTAPE_COMMIT_INTERVAL is meant",
            "TAILTAPE_CONFIGS in the environment is no setting, and is ignored: perhaps TAILTAPE_CONFIG is meant",
            "TAILTAPE_FLAVOUR in the environment is no setting, and is ignored: docs/operations.md lists them all",
        ]
    );
    // What is known, what is somebody else's, and what Kubernetes sets for a Service of the name tailtape.
    let others = [
        ("TAILTAPE_COMMIT_INTERVAL", "5s"),
        ("TAILTAPE_LOG", "debug"),
        ("STORE", "x"),
        ("TAILTAPE_SERVICE_HOST", "10.0.0.1"),
        ("TAILTAPE_SERVICE_PORT_HTTP", "80"),
        ("TAILTAPE_PORT", "tcp://10.0.0.1:80"),
        ("TAILTAPE_PORT_80_TCP_ADDR", "10.0.0.1"),
    ];
    assert_eq!(noted(&others), [""; 0]);
    let port = noted(&[("TAILTAPE_UPD_PORT", "41641")]);
    assert!(port[0].contains("perhaps TAILTAPE_UDP_PORT"), "{port:?}");

    let many: Vec<String> = (0..100)
        .map(|number| format!("TAILTAPE_X{number}Y"))
        .collect();
    let many: Vec<(&str, &str)> = many.iter().map(|name| (name.as_str(), "")).collect();
    assert_eq!(noted(&many).len(), 17);
}
